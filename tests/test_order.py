"""The order of training data: functions of the seed and the place alone."""

import numpy as np
import pytest

from fcdm_keras.data.batches import ArraySource, ShuffledBatches, training_batches
from fcdm_keras.data.order import augmentation, permutation

pytestmark = [pytest.mark.no_backend, pytest.mark.quick]


def batches(count, batch_size, steps, **options):
    return training_batches(
        ArraySource({"i": np.arange(count), "j": -np.arange(count)}), batch_size, steps, 3, **options
    )


def test_permutations_differ_by_epoch_and_seed_and_hold_each_sample_once():
    first, again = permutation(3, 0, 100), permutation(3, 0, 100)
    np.testing.assert_array_equal(first, again)
    for other in (permutation(3, 1, 100), permutation(4, 0, 100)):
        assert (first != other).any()
        np.testing.assert_array_equal(np.sort(other), np.arange(100))


def test_what_is_random_about_a_sample_follows_from_seed_and_place():
    draws = {
        (seed, place): augmentation(seed, place).random(4).tolist() for seed in (0, 1, 2**64 - 1) for place in (0, 1, 9)
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert augmentation(1, np.int64(9)).random(4).tolist() == draws[1, 9]


def test_what_is_random_about_a_sample_shares_no_stream_with_an_order():
    for epoch in (0, 1):
        order = permutation(1, epoch, 100)
        for place in (0, 1):
            assert (augmentation(1, place).permutation(100) != order).any()


def test_batches_visit_every_sample_once_per_epoch_in_an_order_of_their_own():
    source = ShuffledBatches(ArraySource({"i": np.arange(10)}), batch_size=4, steps=10, seed=3)
    assert len(source) == 10
    epochs = np.concatenate([source[i]["i"] for i in range(10)]).reshape(4, 10)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert any((epochs[0] != epoch).any() for epoch in epochs[1:])


def test_batches_from_the_middle_are_those_of_the_whole():
    whole, rest = list(batches(10, 4, 7)), list(batches(10, 4, 7, start=5))
    assert len(rest) == 2
    for a, b in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(a["i"], b["i"])
        np.testing.assert_array_equal(a["j"], -a["i"])


@pytest.mark.parametrize("arrays", [{"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros(0)}])
def test_arrays_that_are_no_samples_are_refused(arrays):
    with pytest.raises(ValueError, match="must have the same, positive number of samples. Received: {"):
        ArraySource(arrays)
