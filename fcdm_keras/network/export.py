"""What a backbone's `export` needs: a signature, shapes that may vary, and the program in plain operations."""

import keras
from keras import ops

from fcdm_keras import kernels

# Formats that a backend's programs can be written in (checked: Keras 3.15); all but the first two need packages more.
FORMATS = {
    "tf_saved_model": ("jax", "tensorflow"),
    "torch": ("torch",),
    "onnx": ("jax", "tensorflow", "torch"),
    "openvino": ("jax", "tensorflow", "torch"),
    "litert": ("tensorflow", "torch"),
}


def signature(backbone):
    """Inputs of a backbone as `keras.InputSpec`s, in a list of one dict; sizes of batch, height and width are open.

    Timesteps are float32, which has whole numbers exactly up to 2²⁴. The condition's shape and dtype are those of the
    conditioning module's `null`.
    """
    condition, null = backbone.conditioning.input_name, backbone.conditioning.null(1)
    dtype = keras.backend.standardize_dtype(null.dtype)
    return [
        {
            "x_t": keras.InputSpec("float32", (None, None, None, backbone.in_channels), name="x_t"),
            "timesteps": keras.InputSpec("float32", (None,), name="timesteps"),
            condition: keras.InputSpec(dtype, (None, *ops.shape(null)[1:]), name=condition),
        }
    ]


def export(backbone, write, filepath, format, input_signature, **options):
    """Exports a backbone by `write`, Keras's method, as `DiffusionBackbone.export` describes it."""
    backend = keras.backend.backend()
    if format in FORMATS and backend not in FORMATS[format]:
        able = ", ".join(FORMATS[format])
        raise ValueError(f"format={format!r} can be exported on the backends {able}. Received: the backend {backend}")
    if input_signature is None:
        input_signature = signature(backbone)
        if format == "tf_saved_model" and backend == "jax":
            options = {**options, "jax2tf_kwargs": _open_sizes(backbone, **(options.get("jax2tf_kwargs") or {}))}
        elif format == "torch":
            options = {"dynamic_shapes": _dynamic(input_signature), **options}
            input_signature = _sized(backbone, input_signature)
    with kernels.plain():
        write(filepath, format=format, input_signature=input_signature, **options)


def _open_sizes(backbone, **options):
    """Options of `jax2tf.convert`: sides that JAX can prove to be divisible."""
    (specs,) = signature(backbone)
    shapes = {name: f"(batch{''.join(f', {size}' for size in spec.shape[1:])})" for name, spec in specs.items()}
    multiple = backbone.side_multiple
    shapes["x_t"] = f"(batch, {multiple}*height, {multiple}*width, {backbone.in_channels})"
    return {"polymorphic_shapes": [shapes], **options}


def _sized(backbone, specs):
    """The signature with sizes to trace at, all different, for PyTorch."""
    multiple = backbone.side_multiple

    def sized(spec):
        sides = (2, 4 * multiple, 6 * multiple)
        return keras.InputSpec(
            spec.dtype, [size or sides[axis] for axis, size in enumerate(spec.shape)], name=spec.name
        )

    return keras.tree.map_structure(sized, specs)


def _dynamic(specs):
    """Which axes vary, for PyTorch, which finds out itself what they must be divisible by."""
    import torch

    vary = torch.export.Dim.DYNAMIC
    shapes = {
        name: {axis: vary for axis, size in enumerate(spec.shape) if size is None} for name, spec in specs[0].items()
    }
    return [(shapes,)]
