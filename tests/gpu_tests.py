"""What needs an NVIDIA GPU: `make test-gpu`. Not a part of `make test`, which needs none.

The fused kernels beside float64, and networks with them beside networks without, on JAX or PyTorch.
"""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from fcdm_keras import FCDMBackbone, kernels
from fcdm_keras.diffusion import randomness
from fcdm_keras.kernels import fused
from fcdm_keras.training.trainer import DiffusionTrainer

pytestmark = pytest.mark.skipif(fused._engine() is None, reason="no GPU that the fused kernels run on")
LEVELS = [(3, 32, 512), (2, 16, 1024), (2, 8, 2048), (2, 12, 96)]  # (B, side, width): FCDM-XL's, and an odd one


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", LEVELS)
def test_block_as_exact_as_plain_operations(level, dtype):
    """Not further from float64 than plain operations in the same dtype, forward and all gradients."""
    if keras.backend.backend() != "torch":
        pytest.skip("the oracle is PyTorch's")
    import torch
    from block_oracle import errors, oracle, results

    values, upstream = fused.example(*level, dtype)
    for poison in range(2):  # what a kernel leaves unwritten would hold it
        torch.full((2**28,), float("nan") if poison else 1e30, device="cuda")
    exact = oracle(values, upstream)
    ours = errors(results(fused._engine().residual, values, upstream), exact)
    assert all(error < 1e-2 for error in ours.values()), ours


def test_kernels_agree_with_plain_operations():
    assert fused._right()


def test_networks_with_and_without():
    """The output of a network and two steps of training, within rounding to bfloat16."""
    generator = np.random.default_rng(0)
    latents, labels = generator.normal(size=(4, 32, 32, 4)).astype("float32"), np.arange(4, dtype="int32")
    found = []
    for context in (contextlib.nullcontext, kernels.plain):
        keras.utils.set_random_seed(0)
        backbone = FCDMBackbone(64, (1, 1, 1, 1, 1), num_classes=10, dtype="mixed_bfloat16")
        for variable in backbone.trainable_variables:  # zeros would hide most of a block
            noise = randomness.normal(
                randomness.sample_keys((7, 0), 1, 0, ops.arange(1)), (int(np.prod(variable.shape)),)
            )
            variable.assign(variable.value + 0.02 * ops.reshape(noise, variable.shape))
        trainer = DiffusionTrainer(backbone)
        trainer.compile()
        inputs = {"x_t": latents, "timesteps": labels, "labels": labels}
        with context():
            out = ops.convert_to_numpy(backbone(inputs))
            found.append([out, *(trainer.train_on_batch(latents, labels) for _ in range(2))])
    fast, plain = found
    assert np.linalg.norm(fast[0] - plain[0]) < 2e-2 * np.linalg.norm(plain[0])
    np.testing.assert_allclose(fast[1:], plain[1:], rtol=2e-2)
