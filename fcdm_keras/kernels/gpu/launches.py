"""How the kernels of `convolution` and `pointwise` are launched: grids, tiles, outputs.

What a launch is on an engine, the engines' files say.
"""

import math

from fcdm_keras.kernels.gpu import convolution, pointwise


class TritonKernels:
    """The operations of a block, each one launch; the engines' subclasses add `linear(x, kernel, bias)`.

    Matrices are feature maps of `rows` pixels an image, `(B · rows, C)`. Column sums are those over an image, float32
    `(B, C)`.

    Args:
        call: `call(kernel, inputs, outputs, grid, scalars, constants, warps)` launches a kernel on arrays and returns
            its outputs, of which `outputs` gives shapes and dtypes.
    """

    def __init__(self, call):
        self.call = call

    def depthwise_norm(self, x, taps, bias, shift, scale, save):
        """`y = conv(x) + bias` (one number unless `save`), and `h`, y normalized over C, times 1 + scale, plus shift.

        `x` `(B, H, W, C)`; float32 `taps` `(k, k, C)`, `bias` `(C,)`, `shift` and `scale` `(B, C)`.
        """
        outputs = [(tuple(x.shape) if save else (1,), x.dtype), (tuple(x.shape), x.dtype)]
        inputs = (x, taps, bias, shift, scale, x)
        return self._depthwise(inputs, outputs, FLIP=False, NORM=True, ADD=False, SAVE=save)

    def depthwise_input_gradient(self, gradient, taps, added):
        """Gradient to the input of the convolution, plus `added`."""
        outputs = [(tuple(gradient.shape), gradient.dtype), ((1,), gradient.dtype)]
        inputs = (gradient, taps, taps, taps, taps, added)
        return self._depthwise(inputs, outputs, FLIP=True, NORM=False, ADD=True, SAVE=True)[0]

    def _depthwise(self, inputs, outputs, **constants):
        batch, height, width, channels = inputs[0].shape
        wide = _power_of_two(channels)
        rows, tile, warps = depthwise_tile(height, width, wide, constants["NORM"])
        constants |= {"H": height, "W": width, "C": channels, "CHANNELS": wide, "ROWS": rows, "TILE": tile}
        grid = (-(-width // tile), batch * -(-height // rows))
        return self.call(convolution.depthwise, inputs, outputs, grid, {}, constants | {"K": inputs[1].shape[0]}, warps)

    def depthwise_kernel_gradient(self, x, gradient, size):
        """Gradient to the taps, float32 `(size, size, C)`."""
        batch, height, width, channels = x.shape
        block = min(_power_of_two(channels), 128)
        columns = -(-channels // block)
        lines = max(1, batch * height * columns // 1024)  # enough programs for every processor, and few sums to add
        parts = -(-batch * height // lines)
        (sums,) = self.call(
            convolution.depthwise_kernel_gradient,
            (x, gradient),
            [((parts, size, size, channels), "float32")],
            (columns, parts),
            {"LINES": lines, "B": batch},
            {"H": height, "W": width, "C": channels, "CHANNELS": block, "TILE": 8, "K": size},
            max(block // 64, 1),
        )
        return sums.sum(0)

    def activate(self, u, rows):
        """`gelu(u)`, and the column sums of its squares."""
        g, parts = self._tiled(pointwise.activate, (u,), [(tuple(u.shape), u.dtype)], 1, rows, False)
        return g, parts[:, 0]

    def contract(self, g, gain, kernel, bias, gate, x, rows, save):
        """`z = (g · gain) @ kernel + bias` (one number unless `save`) and `x + gate · z`.

        `g` `(M, N)`, `gain` `(B, N)` in its dtype, `kernel` `(N, D)`, `bias` `(D,)` and `gate` `(B, D)` float32, `x`
        `(M, D)`.
        """
        (m, n), d = g.shape, kernel.shape[1]
        tile = math.gcd(rows, 128)
        columns = math.gcd(d, 128 if tile == 128 else 256)
        return self.call(
            pointwise.contract,
            (g, gain, kernel, bias, gate, x),
            [((m, d) if save else (1,), x.dtype), ((m, d), x.dtype)],
            (m // tile * (d // columns),),
            {"M": m, "ROWS": rows},
            {"N": n, "D": d, "BM": tile, "BN": columns, "BK": math.gcd(n, 64), "GROUP": 8, "SAVE": save},
            4,
        )

    def gate_gradient(self, gradient, z, gate, rows):
        """Gradient to `z` given that to `x + gate · z`, and column sums of gradient · z, and of the gradient."""
        outputs = [(tuple(z.shape), z.dtype)]
        dz, parts = self._tiled(pointwise.gate_gradient, (gradient, z, gate), outputs, 2, rows, True)
        return dz, parts[:, 0], parts[:, 1]

    def gain_gradient(self, gradient, u, rows):
        """Column sums of gradient · gelu(u)."""
        return self._tiled(pointwise.gain_gradient, (gradient, u), [], 1, rows, False)[0][:, 0]

    def activation_gradient(self, gradient, u, gain, slope, rows):
        """Gradient to u, given that to `v = gelu(u) · gain` and `slope · gelu(u)` beside it; v; and du's column sums.

        `gain` and `slope` `(B, N)` float32.
        """
        outputs = [(tuple(u.shape), u.dtype)] * 2
        du, v, parts = self._tiled(pointwise.activation_gradient, (gradient, u, gain, slope), outputs, 1, rows, True)
        return du, v, parts[:, 0]

    def norm_gradient(self, gradient, y, scale, rows):
        """Gradient to y given that to `norm(y) · (1 + scale) + shift`, and sums to shift's, scale's, y's bias's."""
        m, channels = y.shape
        pixels, wide = math.gcd(rows, 64), _power_of_two(channels)
        height = min(pixels, max(1, 4096 // wide))
        dy, parts = self.call(
            pointwise.norm_gradient,
            (gradient, y, scale),
            [((m, channels), y.dtype), ((m // pixels, 3, channels), "float32")],
            (m // pixels,),
            {"ROWS": rows, "PIXELS": pixels},
            {"C": channels, "CHANNELS": wide, "BM": height},
            max(min(height * wide // 512, 8), 1),
        )
        sums = parts.reshape((m // rows, rows // pixels, 3, channels)).sum(1)
        return dy, sums[:, 0], sums[:, 1], sums[:, 2]

    def _tiled(self, kernel, inputs, outputs, sums, rows, images):
        """An elementwise kernel on tiles of a matrix: its outputs, and `sums` column sums `(B, sums, N)`."""
        m, n = inputs[0].shape
        height, width = math.gcd(rows, 64), math.gcd(n, 128)
        *results, parts = self.call(
            kernel,
            inputs,
            [*outputs, ((m // height, sums, n), "float32")],
            (m // height, n // width),
            {"ROWS": rows} if images else {},
            {"D" if kernel is pointwise.gate_gradient else "N": n, "BM": height, "BN": width},
            8 if height * width >= 8192 else 4,
        )
        return *results, parts.reshape((m // rows, rows // height, sums, n)).sum(1)


def depthwise_tile(height, width, channels, norm):
    """Rows and columns of pixels that one program computes, and its warps, for a power of two of channels.

    Measured on an H100 (XL, levels 1 and 3, batch 64, bfloat16).
    """
    rows = 2 if norm and channels <= 1024 and height > 1 else 1
    return rows, 8 if width > 4 else 4, min(max(channels * rows // 128, 1), 16)


def fits(rows, d, n):
    """Whether images of `rows` pixels and linears from d to n channels and back are cut into whole tiles."""
    return not rows % 16 and not d % 32 and not n % 32


def _power_of_two(number):
    return 1 << (number - 1).bit_length()
