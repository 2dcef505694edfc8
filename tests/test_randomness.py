import numpy as np
import pytest
import scipy.stats
from helpers import to_numpy
from keras import ops

from fcdm_keras.diffusion import randomness

pytestmark = pytest.mark.quick

# Known answers published with Random123 (kat_vectors, "threefry2x32 20").
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_words(key, counter, words):
    assert tuple(int(to_numpy(word)) for word in randomness.threefry(key, counter)) == words


def numpy_threefry(key, counter):
    """Threefry-2x32-20 again, in NumPy's wrapping uint32."""
    with np.errstate(over="ignore"):
        k = [np.uint32(key[0]), np.uint32(key[1])]
        k.append(k[0] ^ k[1] ^ np.uint32(0x1BD11BDA))
        x, y = (np.asarray(c, np.uint32) + k[i] for i, c in enumerate(counter))
        for block in range(5):
            for r in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
                x = x + y
                y = ((y << np.uint32(r)) | (y >> np.uint32(32 - r))) ^ x
            x = x + k[(block + 1) % 3]
            y = y + k[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def test_draws_are_the_documented_function_of_seed_purpose_step_and_index():
    """So they agree between backends: integers exactly, normals to rounding."""
    seed, purpose, step, index = 2**40 + 17, randomness.NOISE, 123, 4567
    base = numpy_threefry(randomness.seed_words(seed), (purpose, 0))
    key = numpy_threefry(base, (step, index))
    words = numpy_threefry(key, (np.arange(6), np.zeros(6)))
    u, v = ((w >> np.uint32(8)).astype(np.float64) / 2**24 for w in words)
    radius = np.sqrt(-2 * np.log(u + 2.0**-25))
    expected = np.concatenate([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)])

    keys = randomness.sample_keys(
        randomness.seed_words(seed), purpose, step, ops.convert_to_tensor([index, 9], "int32")
    )
    np.testing.assert_allclose(to_numpy(randomness.normal(keys, (2, 3, 2)))[0].ravel(), expected, atol=1e-5)
    assert to_numpy(randomness.integers(keys, 1000))[0] == int(words[0][0]) % 1000
    np.testing.assert_allclose(to_numpy(randomness.uniform(keys, (6,)))[0], u, atol=1e-7)


def keys_of(indices, seed=0, purpose=randomness.NOISE, step=0):
    return randomness.sample_keys(randomness.seed_words(seed), purpose, step, ops.convert_to_tensor(indices, "int32"))


def test_a_sample_does_not_depend_on_its_batch():
    together = to_numpy(randomness.normal(keys_of(np.arange(5)), (4, 4, 3)))
    alone = to_numpy(randomness.normal(keys_of([3]), (4, 4, 3)))
    np.testing.assert_array_equal(together[3], alone[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": randomness.STEP_NOISE}, {"step": 1}, {"indices": [1]}])
def test_every_argument_changes_the_draw(change):
    draw = lambda **options: to_numpy(randomness.normal(keys_of(**{"indices": [0], **options}), (64,)))  # noqa: E731
    assert abs(np.corrcoef(draw(), draw(**change))[0, 1]) < 0.5


def test_distributions():
    keys = keys_of(np.arange(2000))
    normals = to_numpy(randomness.normal(keys, (5, 5)))
    assert scipy.stats.kstest(normals.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(normals.reshape(2000, 25).T) - np.eye(25)).max() < 0.1
    assert scipy.stats.kstest(to_numpy(randomness.uniform(keys, (25,))).ravel(), "uniform").pvalue > 1e-3
    counts = np.bincount(to_numpy(randomness.integers(keys, 10)), minlength=10)
    assert counts.size == 10 and scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True, None])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        randomness.seed_words(seed)
