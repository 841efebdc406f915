"""Batches laid out over ticks: every sample once per epoch, with the weight of its own batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.lanes.order import MAX_QUANTUM, epoch_shape, even_weights, quantum, slot_weights
from shoal.lanes.rng import permutation

sizes = st.integers(1, 300)


@settings(max_examples=150, deadline=None)
@given(n=sizes, batch=sizes)
def test_every_sample_comes_once_and_updates_follow_whole_batches(n: int, batch: int) -> None:
    batch = min(batch, n)
    q = quantum(batch)
    shape = epoch_shape(n, batch, q)
    filled = shape.position >= 0
    np.testing.assert_array_equal(shape.position[filled], np.arange(n))  # in order, none twice
    assert shape.n_updates == math.ceil(n / batch) == shape.due.sum() == shape.starts.sum()
    assert shape.sizes.sum() == n and (shape.sizes[:-1] == batch).all()
    assert shape.starts[0] and shape.due[-1]
    for b in range(shape.n_updates):
        ticks = np.flatnonzero(shape.batch == b)
        np.testing.assert_array_equal(ticks, np.arange(ticks[0], ticks[-1] + 1))
        assert shape.starts[ticks[0]] and shape.due[ticks[-1]]
        held = shape.position[ticks]
        np.testing.assert_array_equal(held[held >= 0] // batch, np.full(shape.sizes[b], b))


@settings(max_examples=150, deadline=None)
@given(n=sizes, batch=sizes, seed=st.integers(0, 2**40), data=st.data())
def test_weights_of_a_batch_sum_to_one(n: int, batch: int, seed: int, data: st.DataObject) -> None:
    batch = min(batch, n)
    shape, order = epoch_shape(n, batch, quantum(batch)), permutation(seed, 0, n)
    per_sample = np.array(data.draw(st.lists(st.floats(0.1, 10), min_size=n, max_size=n)))
    weights = slot_weights(shape, order, per_sample)
    filled = shape.position >= 0
    assert (weights[~filled] == 0).all() and (weights[filled] > 0).all()
    of_slot = np.where(filled, per_sample[order[shape.position]], 0.0)
    for b in range(shape.n_updates):
        ticks = shape.batch == b
        assert math.isclose((weights[ticks] * of_slot[ticks]).sum(), 1.0, rel_tol=1e-12)
    np.testing.assert_array_equal(slot_weights(shape, order, None), filled.astype(np.float64))


def test_a_batch_whose_targets_are_all_ignored_has_no_weight() -> None:
    shape = epoch_shape(4, 2, 2)
    weights = slot_weights(shape, np.arange(4), np.array([0.0, 0.0, 1.0, 1.0]))
    assert np.isinf(weights[0]).all() and weights[1].tolist() == [0.5, 0.5]  # 0 / 0 is NaN, as it is in torch


def test_a_quantum_is_a_function_of_the_batch_size_and_wastes_little() -> None:
    for batch in range(1, 2049):
        q = quantum(batch)
        assert 1 <= q <= MAX_QUANTUM
        micro = math.ceil(batch / q)
        assert 1 - batch / (micro * q) < 0.2, batch
    assert [quantum(b) for b in (1, 2, 8, 16, 32, 64, 128, 256)] == [1, 2, 8, 16, 32, 32, 32, 32]


@pytest.mark.parametrize(("n", "batch", "q"), [(50, 20, 20), (50, 40, 20), (7, 3, 3), (5, 5, 5)])
@pytest.mark.parametrize("denominator", [1.0, 6.0, 0.25])
def test_even_weights_do_not_depend_on_the_order(n: int, batch: int, q: int, denominator: float) -> None:
    shape, order = epoch_shape(n, batch, q), np.random.default_rng(0).permutation(n)
    expected = slot_weights(shape, order, np.full(n, denominator))
    np.testing.assert_array_equal(even_weights(n, batch, q, denominator), expected)
