"""The Triton kernels of the depthwise convolution, each reading and writing its feature maps once.

Feature maps are `(B, H, W, C)`, contiguous, of any floating dtype; sums are float32.
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
