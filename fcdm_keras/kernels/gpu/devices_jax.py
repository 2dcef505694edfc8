"""Whether JAX has a GPU that the kernels run on."""

import jax


def found():
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return jax.default_backend() == "gpu" and capability.replace(".", "").isdigit() and float(capability) >= 8
