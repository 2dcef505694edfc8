"""The Triton kernels of all that is no convolution, each reading and writing its feature maps once.

Feature maps are matrices `(B·H·W, C)`, contiguous, of any floating dtype, cut into tiles of rows that never span two
images; sums are float32. Column sums over an image are left as parts, one for each tile, and added up outside: so
results do not depend on the order in which programs run.
"""

import triton
import triton.language as tl


@triton.jit
def _normal(u):
    """The normal distribution function at u, and its density times √2π.

    By the approximation of erf in Abramowitz and Stegun, 7.1.26, right to 1.5e-7: it needs the exponential that the
    density has too, and what these kernels wait for is arithmetic.
    """
    bell = tl.exp(-0.5 * u * u)
    t = 1.0 / (1.0 + 0.231641888 * tl.abs(u))  # 0.3275911 / √2
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    tail = 0.5 * t * series * bell
    return tl.where(u < 0, tail, 1.0 - tail), bell


@triton.jit
def activate(
    u_ptr,  # (M, N)
    g_ptr,  # (M, N): gelu(u)
    parts_ptr,  # (M / BM, N) float32: column sums of g²
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    tile = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    place = tile.to(tl.int64) * BM * N + (tl.arange(0, BM)[:, None] * N + n[None, :])
    u = tl.load(u_ptr + place).to(tl.float32)
    g = (u * _normal(u)[0]).to(g_ptr.dtype.element_ty)
    tl.store(g_ptr + place, g)
    g = g.to(tl.float32)
    tl.store(parts_ptr + tile * N + n, tl.sum(g * g, 0))


@triton.jit
def contract(
    g_ptr,  # (M, N)
    gain_ptr,  # (B, N), of g's dtype: GRN's factors
    kernel_ptr,  # (N, D)
    bias_ptr,  # (D,) float32
    gate_ptr,  # (B, D) float32
    x_ptr,  # (M, D)
    z_ptr,  # (M, D), where SAVE: (g · gain) @ kernel + bias
    y_ptr,  # (M, D): x + gate · z
    M,
    ROWS,  # of one image
    N: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,  # rows of tiles that go together, so that their operands stay in the cache
    SAVE: tl.constexpr,
):
    columns: tl.constexpr = D // BN
    program = tl.program_id(0)
    group = program // (GROUP * columns)
    size = min(M // BM - group * GROUP, GROUP)
    tile = group * GROUP + program % (GROUP * columns) % size
    first, m = tile.to(tl.int64) * BM, tl.arange(0, BM)
    n = program % (GROUP * columns) // size * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    image = tile * BM // ROWS
    left = g_ptr + first * N + (m[:, None] * N + k[None, :])
    right = kernel_ptr + k[:, None] * D + n[None, :]
    gain = gain_ptr + image * N + k
    sums = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, N, BK):
        sums = tl.dot(tl.load(left) * tl.load(gain)[None, :], tl.load(right), sums)
        left += BK
        right += BK * D
        gain += BK
    z = sums + tl.load(bias_ptr + n)[None, :]
    place = m[:, None] * D + n[None, :]
    if SAVE:
        tl.store(z_ptr + first * D + place, z.to(z_ptr.dtype.element_ty))
    gate = tl.load(gate_ptr + image * D + n)[None, :]
    y = tl.load(x_ptr + first * D + place).to(tl.float32) + gate * z
    tl.store(y_ptr + first * D + place, y.to(y_ptr.dtype.element_ty))


@triton.jit
def gate_gradient(
    gradient_ptr,  # (M, D), to y = x + gate · z
    z_ptr,  # (M, D)
    gate_ptr,  # (B, D) float32
    dz_ptr,  # (M, D)
    parts_ptr,  # (M / BM, 2, D) float32: column sums of gradient · z, and of the gradient
    ROWS,  # of one image
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    tile = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    place = tile.to(tl.int64) * BM * D + (tl.arange(0, BM)[:, None] * D + n[None, :])
    gradient = tl.load(gradient_ptr + place).to(tl.float32)
    gate = tl.load(gate_ptr + tile * BM // ROWS * D + n)[None, :]
    tl.store(dz_ptr + place, (gradient * gate).to(dz_ptr.dtype.element_ty))
    z = tl.load(z_ptr + place).to(tl.float32)
    tl.store(parts_ptr + 2 * tile * D + n, tl.sum(gradient * z, 0))
    tl.store(parts_ptr + (2 * tile + 1) * D + n, tl.sum(gradient, 0))


@triton.jit
def gain_gradient(
    gradient_ptr,  # (M, N), to gelu(u) · gain
    u_ptr,  # (M, N)
    parts_ptr,  # (M / BM, N) float32: column sums of gradient · gelu(u)
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    tile = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    place = tile.to(tl.int64) * BM * N + (tl.arange(0, BM)[:, None] * N + n[None, :])
    u = tl.load(u_ptr + place).to(tl.float32)
    gradient = tl.load(gradient_ptr + place).to(tl.float32)
    tl.store(parts_ptr + tile * N + n, tl.sum(gradient * (u * _normal(u)[0]), 0))


@triton.jit
def activation_gradient(
    gradient_ptr,  # (M, N), to v = gelu(u) · gain
    u_ptr,  # (M, N)
    gain_ptr,  # (B, N) float32
    slope_ptr,  # (B, N) float32: the gradient to gelu(u), over gelu(u), that comes by way of the gain
    du_ptr,  # (M, N)
    v_ptr,  # (M, N)
    parts_ptr,  # (M / BM, N) float32: column sums of du
    ROWS,  # of one image
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    tile = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    place = tile.to(tl.int64) * BM * N + (tl.arange(0, BM)[:, None] * N + n[None, :])
    image = tile * BM // ROWS * N
    gain, slope = tl.load(gain_ptr + image + n)[None, :], tl.load(slope_ptr + image + n)[None, :]
    u = tl.load(u_ptr + place).to(tl.float32)
    distribution, bell = _normal(u)
    g = u * distribution
    tl.store(v_ptr + place, (g * gain).to(v_ptr.dtype.element_ty))
    dg = tl.load(gradient_ptr + place).to(tl.float32) * gain + g * slope
    du = dg * (distribution + u * bell * 0.3989422804014327)  # 1 / √2π
    tl.store(du_ptr + place, du.to(du_ptr.dtype.element_ty))
    tl.store(parts_ptr + tile * N + n, tl.sum(du, 0))


@triton.jit
def norm_gradient(
    gradient_ptr,  # (M, C), to h = norm(y) · (1 + scale) + shift
    y_ptr,  # (M, C)
    scale_ptr,  # (B, C) float32
    dy_ptr,  # (M, C)
    parts_ptr,  # (M / PIXELS, 3, C) float32: sums for the gradients to shift, scale and the convolution's bias
    ROWS,  # of one image
    PIXELS,  # of one program, a multiple of BM
    C: tl.constexpr,
    CHANNELS: tl.constexpr,  # C, rounded up to a power of two
    BM: tl.constexpr,
):
    program = tl.program_id(0)
    c = tl.arange(0, CHANNELS)
    real = (c < C)[None, :]
    gain = 1.0 + tl.load(scale_ptr + program * PIXELS // ROWS * C + c, mask=c < C, other=0.0)[None, :]
    place = tl.arange(0, BM)[:, None] * C + c[None, :] + program.to(tl.int64) * PIXELS * C
    d_shift = tl.zeros((BM, CHANNELS), tl.float32)
    d_scale = tl.zeros((BM, CHANNELS), tl.float32)
    d_bias = tl.zeros((BM, CHANNELS), tl.float32)
    for _ in range(0, PIXELS, BM):
        y = tl.load(y_ptr + place, mask=real, other=0.0).to(tl.float32)
        dh = tl.load(gradient_ptr + place, mask=real, other=0.0).to(tl.float32)
        dn = dh * gain
        sums = tl.reduce((y, dn), 1, _add_two)
        y = tl.where(real, y - sums[0][:, None] / C, 0.0)
        products = tl.reduce((y * y, dn * y), 1, _add_two)
        inverse = tl.rsqrt(products[0] / C + 1e-6)
        y *= inverse[:, None]
        dy = inverse[:, None] * (dn - sums[1][:, None] / C - y * (products[1] * inverse)[:, None] / C)
        tl.store(dy_ptr + place, dy.to(dy_ptr.dtype.element_ty), mask=real)
        d_shift += dh
        d_scale += dh * y
        d_bias += dy
        place += BM * C
    tl.store(parts_ptr + 3 * program * C + c, tl.sum(d_shift, 0), mask=c < C)
    tl.store(parts_ptr + (3 * program + 1) * C + c, tl.sum(d_scale, 0), mask=c < C)
    tl.store(parts_ptr + (3 * program + 2) * C + c, tl.sum(d_bias, 0), mask=c < C)


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d
