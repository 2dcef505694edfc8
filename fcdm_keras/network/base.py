"""What all backbones have in common: one contract towards trainers, samplers, tasks and devices."""

import collections
import itertools

import keras
import numpy as np

from fcdm_keras.arguments import SIDE, check_integer
from fcdm_keras.backend.hub import Independent, default_name, keras_hub
from fcdm_keras.network import adapters, export, presets, quantization
from fcdm_keras.network.conditioning import ClassConditioning

_parts = collections.defaultdict(itertools.count)  # of functional models so far, by their default names


class DiffusionBackbone(presets.ReplacedWhole, keras_hub.models.Backbone, metaclass=Independent):
    """Base of networks that predict noise, with a swappable conditioning module.

    A backbone takes a dict of `x_t` `(B, H, W, in_channels)`, `timesteps` `(B,)` (integer or fractional) and the
    condition under the module's own name (`labels` `(B,)`), and returns float32 `(B, H, W, out_channels)`.

    A subclass makes its layers after `super().__init__`, ends with `self.build()`, calls `build_conditioning` and
    `checked`, and adds its own arguments to `get_config`; `hidden_channels` and `depths` come first (see
    `fcdm_keras.recipes.ModelSize`).

    Args:
        widths: widths of the vectors that the conditioning module gives, finest level first.
        num_classes: classes of the default conditioning module.
        in_channels: channels of `x_t`.
        out_channels: output channels; `None` means `2 · in_channels` (noise and variance).
        conditioning: a module as described in `fcdm_keras.network.conditioning`; default
            `ClassConditioning(num_classes)`.
        dtype: dtype policy, e.g. `"mixed_bfloat16"`.
        name: default the class's in snake case, as `fcdm_backbone`, for every model: so variables of two models have
            the same paths.

    Attributes:
        side_multiple: what height and width of `x_t` must be divisible by.
        smallest_side: what they must be at least.
        gradient_checkpointing: whether training recomputes activations in the backward pass.
        layout: how variables are cut over devices, see `fcdm_keras.distribution.layout`; none are by default.

    Raises:
        ValueError: for a conditioning module of other widths, and on call for inputs that do not fit.
    """

    side_multiple = 1
    smallest_side = 1
    _is_part = False  # of a functional model
    gradient_checkpointing = False
    layout = ((r".*", ()),)

    def __init__(
        self,
        widths,
        num_classes=1000,
        in_channels=4,
        out_channels=None,
        conditioning=None,
        dtype=None,
        name=None,
        **kwargs,
    ):
        super().__init__(dtype=dtype, name=name or default_name(type(self)), **kwargs)
        self.in_channels = check_integer("in_channels", in_channels, 1, SIDE)
        self.out_channels = 2 * in_channels if out_channels is None else check_integer("out_channels", out_channels)
        self.widths = tuple(widths)
        self.autocast = False  # timesteps stay exact under mixed precision; x_t is cast in `call`
        self.conditioning = conditioning or ClassConditioning(num_classes, name="conditioning")
        if self.conditioning.widths not in (None, self.widths):
            raise ValueError(
                f"The conditioning module must have widths {self.widths}. Received: {self.conditioning.widths}"
            )
        self.conditioning.widths = self.widths

    def build_conditioning(self):
        """Builds the conditioning module, unless it was loaded with its weights."""
        if not self.conditioning.built:
            self.conditioning.build(None)

    def __call__(self, inputs, *args, **kwargs):
        given = inputs if isinstance(inputs, dict) else {}
        if isinstance(given.get("x_t"), keras.KerasTensor):
            self._tell_apart()
        elif isinstance(given.get("x_t"), np.ndarray):
            _check_floating(given["x_t"])
        condition = given.get(self.conditioning.input_name)
        if isinstance(condition, (list, tuple, np.ndarray)):  # on the host: a look costs nothing
            self.conditioning.check(condition)
        return super().__call__(inputs, *args, **kwargs)

    def _tell_apart(self):
        """Numbers the models with the default name that become parts of functional models, where names must differ."""
        name = default_name(type(self))
        if self.name == name and not self._is_part:
            number = next(_parts[name])
            self.name = f"{name}_{number}" if number else name
        self._is_part = True

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Quantizes the linears on feature maps, where nearly all weights and arithmetic are; see `keras.Model`.

        Args:
            mode: `"int8"`, `"int4"` or `"float8"`.
            config: Keras's default for the mode, which is all that is stored.
            filters: which of these layers; as Keras's.

        Raises:
            ValueError: for another mode or configuration, for float16, and for layers that are quantized already.
        """
        quantization.check(self, config)
        super().quantize(mode, config=config, filters=quantization.filtered(filters), **kwargs)

    def checked(self, inputs):
        """`x_t`, `timesteps` and condition of an input dict. Raises ValueError if it does not fit."""
        names = ("x_t", "timesteps", self.conditioning.input_name)
        if not isinstance(inputs, dict) or set(inputs) != set(names):
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(f"Inputs must be a dict with the keys {', '.join(names)}. Received: {received}")
        _check_floating(inputs["x_t"])
        shape, multiple = tuple(inputs["x_t"].shape), self.side_multiple
        if len(shape) != 4 or shape[-1] != self.in_channels:
            raise ValueError(f"x_t must have shape (B, H, W, {self.in_channels}). Received: {shape}")
        if any(side is not None and side % multiple for side in shape[1:3]):
            raise ValueError(
                f"Height and width of x_t must be divisible by {multiple}. Received: {shape[1]}×{shape[2]}"
            )
        if any(side is not None and side < self.smallest_side for side in shape[1:3]):
            raise ValueError(
                f"Height and width of x_t must be at least {self.smallest_side}. Received: {shape[1]}×{shape[2]}"
            )
        return tuple(inputs[name] for name in names)

    def default_lora_layer_names(self):
        """Names of the layers that `enable_lora` adapts; a subclass names its own."""
        return []

    def enable_lora(self, rank, target_layer_names=None):
        """Freezes all weights and adapts layers (LoRA); compile the trainer afterwards.

        What else shall be trained is unfrozen afterwards: `backbone.conditioning.trainable = True` for the tables,
        which new classes need.

        Args:
            rank: of the adapters, at least 1.
            target_layer_names: names of the layers; default `default_lora_layer_names()`.

        Raises:
            ValueError: for a rank or names that cannot be, and where there are adapters already.
        """
        adapters.enable(self, rank, target_layer_names or self.default_lora_layer_names())

    def save_lora_weights(self, filepath):
        """Saves the adapters, and all other weights that are trainable, in a file `….lora.h5`."""
        adapters.save(self, filepath)

    def load_lora_weights(self, filepath):
        """Loads a file of `save_lora_weights` into a network of the same sizes, which is adapted if it is not yet.

        Raises:
            ValueError: the file does not fit; nothing was loaded.
        """
        adapters.load(self, filepath)

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Exports the network as a program that runs without this package and without Keras (`docs/exporting.md`).

        Args:
            filepath: folder of a `"tf_saved_model"`; file, ending in `.pt2` for `"torch"`.
            format: `"tf_saved_model"` (JAX, TensorFlow), `"torch"` (PyTorch), or another of `keras.Model.export`.
            verbose: whether to print a message; `None` is Keras's default.
            input_signature: `keras.InputSpec`s as `keras.Model.export` takes them; by default sizes of batch, height
                and width are open, and timesteps are float32.
            **kwargs: see `keras.Model.export`.

        Raises:
            ValueError: for a format that this backend cannot write, in a sentence that names the backends that can.
        """
        export.export(self, super().export, filepath, format, input_signature, verbose=verbose, **kwargs)

    def compute_output_shape(self, input_shape):
        return (*input_shape["x_t"][:-1], self.out_channels)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """As KerasHub's `from_preset`, from a path too; the dtype policy is the preset's unless `dtype` is given."""
        with presets.reading(preset, load_weights):
            return super().from_preset(str(preset), load_weights, **kwargs)

    def get_config(self):
        return {
            **super().get_config(),
            **quantization.stored(self),
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "conditioning": keras.saving.serialize_keras_object(self.conditioning),
        }

    @classmethod
    def from_config(cls, config):
        config, modes = quantization.read(config)
        if isinstance(config.get("conditioning"), dict):
            config["conditioning"] = keras.saving.deserialize_keras_object(config["conditioning"])
        backbone = super().from_config(config)
        quantization.repeat(backbone, modes)
        return backbone


class _EqualToAll(Independent):
    def __eq__(cls, other):
        return isinstance(other, type) and issubclass(other, DiffusionBackbone)

    __hash__ = type.__hash__


class AnyBackbone(DiffusionBackbone, metaclass=_EqualToAll):
    """Stands for all backbones where a task says which it takes.

    KerasHub (checked: 0.32.0) loads a task's preset only where the task's `backbone_cls` equals the class of the stored
    backbone.
    """


def _check_floating(x_t):
    dtype = keras.backend.standardize_dtype(x_t.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "x_t must be floating-point numbers; `encode` of an autoencoder makes them of images. "
            f"Received: dtype {dtype}"
        )
