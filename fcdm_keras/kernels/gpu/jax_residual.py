"""A block as a function that JAX differentiates, spread over the devices that share a batch."""

import jax
import keras
from jax.sharding import PartitionSpec

from fcdm_keras.kernels.gpu import block

BATCH = "batch"  # the axis of Keras's `DataParallel`
_SAVED, _WEIGHTS = 5, 8


def differentiable(kernels):
    """The residual as a function of arrays, by the operations of `kernels`."""

    @jax.custom_vjp
    def function(*arguments):
        return _spread(lambda *args: block.forward(kernels, *args, save=False)[0], 1, 0)(*arguments)

    def forward(*arguments):
        def run(*arguments):
            out, saved = block.forward(kernels, *arguments, save=True)
            return out, *saved

        out, *saved = _spread(run, 1 + _SAVED, 0)(*arguments)
        return out, (saved, arguments)

    def backward(residuals, out):
        saved, arguments = residuals
        vectors, weights = arguments[:-_WEIGHTS], arguments[-_WEIGHTS:]

        def run(*values):
            saved, vectors, out = values[:_SAVED], values[_SAVED : -_WEIGHTS - 1], values[-_WEIGHTS - 1]
            gradients = block.backward(kernels, saved, *vectors, *values[-_WEIGHTS:], out)
            return *gradients[:-_WEIGHTS], *map(_summed, gradients[-_WEIGHTS:])

        gradients = _spread(run, len(vectors), _WEIGHTS)(*saved, *vectors, out, *weights)
        return tuple(g.astype(a.dtype) for g, a in zip(gradients, arguments))

    function.defvjp(forward, backward)
    return function


def _spread(function, rows, sums):
    """A function of arrays with a batch axis and, last, of the block's weights, on each device's part of the batch.

    Its first `rows` results have a batch axis, its last `sums` are sums over all devices.
    """
    mesh = _mesh()
    if mesh is None:
        return function

    def spread(*arguments):
        parts, whole = PartitionSpec(BATCH), PartitionSpec()
        inputs = (parts,) * (len(arguments) - _WEIGHTS) + (whole,) * _WEIGHTS
        outputs = (parts,) * rows + (whole,) * sums
        outputs = outputs if len(outputs) > 1 else outputs[0]
        return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)(*arguments)

    return spread


def _summed(value):
    return value if _mesh() is None else jax.lax.psum(value, BATCH)


def _mesh():
    distribution = keras.distribution.distribution()
    return None if distribution is None else distribution.device_mesh.backend_mesh
