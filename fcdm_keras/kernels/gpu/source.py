"""The Triton kernels: what is hot in a block, each reading and writing its feature maps once.

Feature maps are `(B, H, W, C)`, contiguous, of any floating dtype; sums are float32. Feature maps as matrices are
`(B·H·W, C)`, cut into tiles of rows that never span two images. Column sums over an image are left as parts, one for
each tile, and added up outside: so results do not depend on the order in which programs run.
"""

import triton
import triton.language as tl


@triton.jit
def depthwise(
    x_ptr,  # (B, H, W, C)
    taps_ptr,  # (K, K, C) float32
    bias_ptr,  # (C,) float32, where NORM
    shift_ptr,  # (B, C) float32, where NORM
    scale_ptr,  # (B, C) float32, where NORM
    added_ptr,  # (B, H, W, C), where ADD
    y_ptr,  # (B, H, W, C), where SAVE: the convolution, with the bias or `added`
    h_ptr,  # (B, H, W, C), where NORM: y, normalized over C and modulated
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,  # C, rounded up to a power of two
    ROWS: tl.constexpr,  # a program computes ROWS × TILE pixels; TILE is a multiple of 4
    TILE: tl.constexpr,
    K: tl.constexpr,
    FLIP: tl.constexpr,  # correlate with the mirrored taps: the gradient to x
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    SAVE: tl.constexpr,
):
    """K×K depthwise convolution with zeros around; then LayerNorm and adaLN's modulation, or a map that is added."""
    margin: tl.constexpr = K // 2
    left = tl.program_id(0) * TILE
    strips = tl.cdiv(H, ROWS)
    image, top = tl.program_id(1) // strips, tl.program_id(1) % strips * ROWS
    c = tl.arange(0, CHANNELS)
    real = c < C
    start = tl.zeros((CHANNELS,), tl.float32)
    if NORM:
        start = tl.load(bias_ptr + c, mask=real, other=0.0)
    sums = (start,)
    for _ in tl.static_range(ROWS * TILE - 1):
        sums = sums + (start,)
    for step in range(K + ROWS - 1):
        source = top + step - margin
        if (source >= 0) & (source < H):
            line = x_ptr + ((image * H + source).to(tl.int64) * W + left) * C + c
            taps = ()
            for r in tl.static_range(ROWS):
                i = step - r  # the row of taps that leads from this row to row r of the tile
                for j in tl.static_range(K):
                    place = (K - 1 - i) * K + (K - 1 - j) if FLIP else i * K + j
                    used = real & (i >= 0) & (i < K) if ROWS > 1 else real
                    taps = taps + (tl.load(taps_ptr + place * C + c, mask=used, other=0.0),)
            for p in tl.static_range(TILE + K - 1):  # each pixel is loaded once for all taps of the row
                inside = real
                if p < margin or p >= TILE + margin or W % TILE > 0:
                    inside = real & (left + p >= margin) & (left + p < W + margin)
                value = tl.load(line + (p - margin) * C, mask=inside, other=0.0).to(tl.float32)
                moved = ()
                for r in tl.static_range(ROWS):
                    for t in tl.static_range(TILE):
                        if (p - t >= 0) and (p - t < K):
                            moved = moved + (sums[r * TILE + t] + value * taps[r * K + p - t],)
                        else:
                            moved = moved + (sums[r * TILE + t],)
                sums = moved
    if NORM:
        gain = 1.0 + tl.load(scale_ptr + image * C + c, mask=real, other=0.0)
        shift = tl.load(shift_ptr + image * C + c, mask=real, other=0.0)
    for q in tl.static_range(ROWS * TILE // 4):  # four pixels of a row
        row = top + q * 4 // TILE
        first = left + q * 4 % TILE
        place = ((image * H + row).to(tl.int64) * W + first) * C + c
        y = (sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3])
        for t in tl.static_range(4):
            inside = real & (row < H) & (first + t < W)
            value = y[t]
            if ADD:
                value += tl.load(added_ptr + place + t * C, mask=inside, other=0.0).to(tl.float32)
            if SAVE:
                tl.store(y_ptr + place + t * C, value.to(y_ptr.dtype.element_ty), mask=inside)
        if NORM:
            m = tl.reduce(y, 0, _add_four)
            d = (y[0] - m[0] / C, y[1] - m[1] / C, y[2] - m[2] / C, y[3] - m[3] / C)
            if CHANNELS > C:
                d = (tl.where(real, d[0], 0.0), tl.where(real, d[1], 0.0)) + (
                    tl.where(real, d[2], 0.0),
                    tl.where(real, d[3], 0.0),
                )
            v = tl.reduce((d[0] * d[0], d[1] * d[1], d[2] * d[2], d[3] * d[3]), 0, _add_four)
            for t in tl.static_range(4):
                inside = real & (row < H) & (first + t < W)
                h = d[t] * tl.rsqrt(v[t] / C + 1e-6) * gain + shift
                tl.store(h_ptr + place + t * C, h.to(h_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def depthwise_kernel_gradient(
    x_ptr,  # (B, H, W, C)
    gradient_ptr,  # (B, H, W, C), of the convolution
    parts_ptr,  # (programs, K, K, C) float32: sums over the rows of each program
    LINES,  # rows of pixels of one program
    B,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,  # of one program
    TILE: tl.constexpr,  # pixels whose gradients are held at a time
    K: tl.constexpr,
):
    """Every tap's sum stays in registers; a pixel of x is loaded once for a row of taps."""
    margin: tl.constexpr = K // 2
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    part = tl.program_id(1)
    begin = part.to(tl.int64) * LINES
    sums = ()
    for _ in tl.static_range(K * K):
        sums = sums + (tl.zeros((CHANNELS,), tl.float32),)
    for step in range(min(LINES, B * H - part * LINES)):
        h = ((begin + step) % H).to(tl.int32)
        for left in range(0, W, TILE):
            place = ((begin + step) * W + left) * C + c
            gradients = ()
            for t in tl.static_range(TILE):
                inside = real & (left + t < W) if W % TILE > 0 else real
                value = tl.load(gradient_ptr + place + t * C, mask=inside, other=0.0)
                gradients = gradients + (value.to(tl.float32),)
            for i in tl.static_range(K):
                there = real & (h + i >= margin) & (h + i < H + margin)
                row = ()
                for j in tl.static_range(K):
                    row = row + (sums[i * K + j],)
                for p in tl.static_range(TILE + K - 1):
                    inside = there
                    if p < margin or p >= TILE + margin or W % TILE > 0:
                        inside = there & (left + p >= margin) & (left + p < W + margin)
                    source = x_ptr + place + ((i - margin) * W + p - margin) * C
                    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
                    moved = ()
                    for j in tl.static_range(K):
                        if (p - j >= 0) and (p - j < TILE):
                            moved = moved + (row[j] + value * gradients[p - j],)
                        else:
                            moved = moved + (row[j],)
                    row = moved
                updated = ()
                for q in tl.static_range(K * K):
                    if q // K == i:  # noqa: SIM108
                        updated = updated + (row[q % K],)
                    else:
                        updated = updated + (sums[q],)
                sums = updated
    for q in tl.static_range(K * K):
        tl.store(parts_ptr + (part * K * K + q) * C + c, sums[q], mask=real)


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
