"""Layers of FCDM (paper, section 3.1 and figure 3).

Feature maps are `(B, H, W, C)`, conditioning vectors `(B, C)`. Statistics of the norms, the timestep features and all
that comes from the conditioning vector (adaLN) are float32, or float64 under that policy; convolutions and linears on
feature maps follow the policy.
"""

import math

import keras
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.arguments import check_integer
from fcdm_keras.network.adapters import Adaptable
from fcdm_keras.network.initializers import Normal, XavierUniform


def wide(dtype):
    """The dtype of statistics and conditioning under a policy: float32, or float64 where that computes so."""
    return "float64" if keras.dtype_policies.get(dtype).compute_dtype == "float64" else "float32"


def linear(units, **options):
    """A `Dense` over the last axis, Xavier-uniform; on feature maps it is the 1×1 convolution."""
    return Linear(units, **{"kernel_initializer": XavierUniform(), **options})


def conv(channels, **options):
    """A 3×3 convolution that keeps the size, Xavier-uniform."""
    options = {"kernel_initializer": XavierUniform(), **options}
    return Conv2D(channels, 3, padding="same", data_format="channels_last", **options)


@keras.saving.register_keras_serializable("fcdm_keras")
class Conv2D(Adaptable, layers.Conv2D):
    """`keras.layers.Conv2D`, computed by `fcdm_keras.kernels.conv3x3`."""

    def convolution_op(self, inputs, kernel):
        return kernels.conv3x3(inputs, kernel)


@keras.saving.register_keras_serializable("fcdm_keras")
class Linear(Adaptable, layers.Dense):
    """`keras.layers.Dense`, with bias and without activation, computed by `fcdm_keras.kernels.linear`."""

    def call(self, inputs, training=None):
        kernel, bias = ops.cast(self.kernel, inputs.dtype), ops.cast(self.bias, inputs.dtype)
        return kernels.linear(inputs, kernel, bias)

    def quantize(self, mode=None, type_check=True, config=None):
        """As `keras.layers.Dense.quantize`, whose arithmetic a quantized layer has."""
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable("fcdm_keras")
class Dense(Adaptable, layers.Dense):
    """`keras.layers.Dense`, for vectors."""


@keras.saving.register_keras_serializable("fcdm_keras")
class DepthwiseConv(layers.Layer):
    """Depthwise k×k convolution with bias, stride 1 and zero padding.

    Weights are those of `keras.layers.DepthwiseConv2D(kernel_size, padding="same")`: `kernel` `(k, k, C, 1)` and
    `bias` `(C,)`. The arithmetic is `fcdm_keras.kernels.depthwise_conv`.

    Args:
        kernel_size: odd integer k.
        initializer: of the kernel; default Xavier-uniform.
    """

    def __init__(self, kernel_size=7, initializer=None, **kwargs):
        super().__init__(**kwargs)
        if check_integer("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd integer. Received: {kernel_size}")
        self.kernel_size = kernel_size
        self.initializer = keras.initializers.get(initializer or XavierUniform())

    def build(self, input_shape):
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(self.kernel_size, self.kernel_size, channels, 1), initializer=self.initializer
        )
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")

    def call(self, x):
        kernel, bias = ops.cast(self.kernel, x.dtype), ops.cast(self.bias, x.dtype)
        return kernels.depthwise_conv(x, kernel) + bias

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), "kernel_size": self.kernel_size, "initializer": initializer}


@keras.saving.register_keras_serializable("fcdm_keras")
class GRN(layers.Layer):
    """Global response normalization (ConvNeXt V2), `(B, H, W, C)` → `(B, H, W, C)`.

    With `G = sqrt(Σ_{H,W} x²)` and `N = G / (mean_C G + 1e-6)` the output is `gamma · (x · N) + beta + x`, computed as
    one multiply-add per element, `x · (gamma · N + 1) + beta`. `gamma` and `beta` are `(C,)` and start at zero.
    """

    def build(self, input_shape):
        options = {"shape": input_shape[-1:], "initializer": "zeros", "dtype": wide(self.dtype_policy)}
        self.gamma, self.beta = self.add_weight(name="gamma", **options), self.add_weight(name="beta", **options)

    def call(self, x):
        dtype = "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"
        energy = ops.sum(ops.square(ops.cast(x, dtype)), axis=(1, 2), keepdims=True)
        # The floor keeps the root's first and second derivatives finite where a channel is zero everywhere.
        if dtype == "float32":
            response = ops.sqrt(ops.clip(energy, 1e-24, math.inf))  # (B, 1, 1, C)
            mean = ops.mean(response, axis=-1, keepdims=True)
        else:  # Keras takes roots, maxima and means of float64 in float32, on JAX or PyTorch
            response = energy * ops.rsqrt(energy + 1e-24)
            mean = ops.sum(response, axis=-1, keepdims=True) / x.shape[-1]
        normalized = response / (mean + 1e-6)
        gain = ops.cast(self.gamma, dtype) * normalized + 1.0
        return x * ops.cast(gain, x.dtype) + ops.cast(self.beta, x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("fcdm_keras")
class FCDMBlock(layers.Layer):
    """ConvNeXt block with adaLN-zero conditioning (figure 3b).

    `call(x, conditioning)` takes `(B, H, W, d)` and `(B, d)` and returns `(B, H, W, d)`. The gate starts at zero, so a
    new block is the identity.

    Args:
        expansion_ratio: r, width of the hidden layer over d.
        kernel_size: odd size of the depthwise kernel.

    Attributes:
        gradient_checkpointing: recompute the block in the backward pass instead of storing its activations.
    """

    vectors = 3  # of the block's width, that adaLN gives
    lora_layer_names = ("pwconv1", "pwconv2")  # the linears, which hold most of the weights
    _response = GRN

    def __init__(self, expansion_ratio=3, kernel_size=7, **kwargs):
        super().__init__(**kwargs)
        self.expansion_ratio = expansion_ratio
        self.kernel_size = kernel_size
        self.gradient_checkpointing = False

    def build(self, input_shape, conditioning_shape=None):
        width = input_shape[-1]
        hidden = int(self.expansion_ratio * width)
        self.dwconv = self._mixer(dtype=self.dtype_policy, name="dwconv")
        self.grn = self._response(dtype=self.dtype_policy, name="grn")
        self.adaln = self._adaln(width)
        self.pwconv1 = linear(hidden, dtype=self.dtype_policy, name="pwconv1")
        self.pwconv2 = linear(width, dtype=self.dtype_policy, name="pwconv2")
        self.dwconv.build(input_shape)
        self.pwconv1.build((None, None, None, width))
        self.grn.build((None, None, None, hidden))
        self.pwconv2.build((None, None, None, hidden))

    def _mixer(self, **options):
        return DepthwiseConv(self.kernel_size, **options)

    def _adaln(self, width):
        options = {"kernel_initializer": "zeros", "dtype": wide(self.dtype_policy), "name": "adaln"}
        layer = linear(self.vectors * width, **options)
        layer.build((None, width))
        return layer

    def call(self, x, conditioning, training=None):
        if training and self.gradient_checkpointing:
            return keras.remat(self._residual)(x, conditioning)
        return self._residual(x, conditioning)

    def _residual(self, x, conditioning):
        vectors = ops.split(self.adaln(ops.silu(conditioning)), self.vectors, axis=-1)
        fused = kernels.fused_residual(x, self.pwconv1.units) if self._may_be_fused() else None
        if fused:
            return fused(x, *vectors, *map(ops.convert_to_tensor, self._operands()))
        return self.plain_residual(x, *vectors)

    def plain_residual(self, x, shift, scale, gate):
        """What a block computes, given adaLN's vectors `(B, d)`: the specification of the fused kernels."""
        h = self.dwconv(x)
        h = modulate(kernels.layer_norm(h), shift, scale)
        h = self.grn(kernels.gelu(self.pwconv1(ops.cast(h, x.dtype))))
        h = self.pwconv2(h)
        return x + ops.cast(gate, x.dtype)[:, None, None, :] * h

    def _may_be_fused(self):
        """Not where other parts stand in a derived block, and not where the linears are quantized."""
        return type(self) is FCDMBlock and not (self.pwconv1.quantization_mode or self.pwconv2.quantization_mode)

    def _operands(self):
        """The weights in the order in which the fused residual takes them; kernels with their adapters."""
        layers = (self.dwconv, self.pwconv1)
        first = [value for layer in layers for value in (layer.kernel, layer.bias)]
        return [*first, self.grn.gamma, self.grn.beta, self.pwconv2.kernel, self.pwconv2.bias]

    def compute_output_shape(self, input_shape, conditioning_shape=None):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "expansion_ratio": self.expansion_ratio,
            "kernel_size": self.kernel_size,
        }


@keras.saving.register_keras_serializable("fcdm_keras")
class TimestepEmbedding(layers.Layer):
    """Sinusoidal features of the timestep, then Linear, SiLU, Linear: `(B,)` → `(B, width)`, float32.

    Timesteps may be integers (0 … 999) or fractions ([0, 1] in flow matching); they are used as they are.

    Args:
        width: output width d.
        frequency_dim: number of sinusoidal features, even.
        max_period: longest period of the features.
    """

    def __init__(self, width, frequency_dim=256, max_period=10_000, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.width = width
        self.frequency_dim = frequency_dim
        self.max_period = max_period
        normal = {"kernel_initializer": Normal(0.02), "dtype": "float32"}
        self.hidden, self.out = (Dense(width, name=name, **normal) for name in ("hidden", "out"))

    def build(self, input_shape):
        self.hidden.build((None, self.frequency_dim))
        self.out.build((None, self.width))

    def call(self, timesteps):
        features = timestep_features(timesteps, self.frequency_dim, self.max_period)
        return self.out(ops.silu(self.hidden(features)))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "frequency_dim": self.frequency_dim,
            "max_period": self.max_period,
        }


@keras.saving.register_keras_serializable("fcdm_keras")
class FinalLayer(layers.Layer):
    """LayerNorm, adaLN modulation and a 3×3 convolution to the output channels, all in float32 or float64.

    `call(x, conditioning)`: `(B, H, W, C)` and `(B, C)` → `(B, H, W, channels)`, zero in a new layer.

    Args:
        channels: output channels.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**{**kwargs, "dtype": wide(kwargs.get("dtype"))})
        self.channels = channels
        self.conv = conv(channels, kernel_initializer="zeros", dtype=self.dtype_policy, name="conv")

    def build(self, input_shape, conditioning_shape=None):
        width = input_shape[-1]
        self.adaln = linear(2 * width, kernel_initializer="zeros", dtype=self.dtype_policy, name="adaln")
        self.adaln.build((None, width))
        self.conv.build(input_shape)

    def call(self, x, conditioning):
        shift, scale = ops.split(self.adaln(ops.silu(conditioning)), 2, axis=-1)
        return self.conv(modulate(kernels.layer_norm(x), shift, scale))

    def compute_output_shape(self, input_shape, conditioning_shape=None):
        return (*input_shape[:-1], self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def timestep_features(timesteps, size, max_period=10_000):
    """`[cos(t f), sin(t f)]` of timesteps `(B,)`, `(B, size)`, float32; f falls from 1 to nearly 1 / max_period."""
    half = size // 2
    exponents = ops.arange(half, dtype="float32") / half
    frequencies = ops.exp(-math.log(max_period) * exponents)
    angles = ops.cast(timesteps, "float32")[:, None] * frequencies[None]
    return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)


def modulate(x, shift, scale):
    """`x · (1 + scale) + shift` with `x` `(B, H, W, C)`, `shift` and `scale` `(B, C)`."""
    return x * (1.0 + scale[:, None, None, :]) + shift[:, None, None, :]
