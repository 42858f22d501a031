# SPDX-License-Identifier: Apache-2.0
"""The gradients of pooling and normalizing against central differences."""

import itertools

import numpy as np
import pytest

from selfattn.text.pooling import MODES, normalize, pool
from selfattn.text.pooling_backward import normalize_backward, pool_backward

BOUNDS = np.array([0, 1, 6, 6, 8, 15])
STEP = np.float32(2.0**-6)  # the maps are linear between two maxima: any step will do


def along_each_entry(function, x, grad_y):
    """d sum(grad_y * function(x)) / dx by central differences, entry for entry."""
    result = np.empty_like(x)
    for entry in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[entry] = STEP
        difference = function(x + step).astype(np.float64) - function(x - step)
        result[entry] = (grad_y * difference).sum() / (2 * STEP)
    return result


@pytest.fixture
def tokens(rng):
    return (
        rng.permuted(np.arange(90)).reshape(15, 6).astype(np.float32)
    )  # far apart: no step changes a maximum


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), tuple(MODES)])
def test_every_mode(rng, tokens, modes, skip):
    grad_y = rng.standard_normal((5, len(modes) * 6)).astype(np.float32)
    grads = pool_backward(grad_y, tokens, BOUNDS, modes, skip=skip)
    expected = along_each_entry(lambda x: pool(x, BOUNDS, modes, skip=skip), tokens, grad_y)
    assert grads.dtype == np.float32
    np.testing.assert_allclose(grads, expected, rtol=1e-3, atol=1e-3)


def test_a_sentence_gets_the_same_bits_alone(rng, tokens):
    grad_y = rng.standard_normal((5, 12)).astype(np.float32)
    modes = ("mean", "max")
    grads = pool_backward(grad_y, tokens, BOUNDS, modes)
    for i, (first, last) in enumerate(itertools.pairwise(BOUNDS)):
        alone = pool_backward(grad_y[i : i + 1], tokens[first:last], np.array([0, last - first]), modes)
        np.testing.assert_array_equal(alone, grads[first:last])


def test_of_equal_maxima_the_first_counts():
    tokens = np.array([[1.0], [2.0], [2.0]], np.float32)
    grads = pool_backward(np.array([[5.0]], np.float32), tokens, np.array([0, 3]), ("max",))
    np.testing.assert_array_equal(grads, [[0], [5], [0]])


def test_what_pool_did_not_give_is_refused(rng, tokens):
    for wrong in [(5, 6), (4, 12), (12, 5)]:
        with pytest.raises(
            ValueError, match=rf"grad_y has shape \({wrong[0]}, {wrong[1]}\); pool gives \(5, 12\)"
        ):
            pool_backward(np.ones(wrong, np.float32), tokens, BOUNDS, ("mean", "max"))
    with pytest.raises(ValueError, match="the pooling mode 'average' is not one of cls, max, mean"):
        pool_backward(np.ones((5, 6), np.float32), tokens, BOUNDS, ("average",))
    with pytest.raises(ValueError, match="the pooling mode 'average' is not one of cls, max, mean"):
        pool(tokens, BOUNDS, ("average",))
    with pytest.raises(ValueError, match="the pooling mode 'm' is not one of"):
        pool(tokens, BOUNDS, "mean")


def test_normalizing(rng):
    x = rng.standard_normal((4, 6))
    grad_y = rng.standard_normal((4, 6)).astype(np.float32)

    def loss(x):
        return (grad_y * x / np.linalg.norm(x, axis=1, keepdims=True)).sum()

    grads = normalize_backward(grad_y, x.astype(np.float32))
    for entry in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[entry] = 1e-6
        assert grads[entry] == pytest.approx((loss(x + step) - loss(x - step)) / 2e-6, rel=1e-4, abs=1e-5)


def test_a_zero_row_has_no_gradient():
    x = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    grads = normalize_backward(np.ones((2, 2), np.float32), x)
    np.testing.assert_array_equal(grads[0], 0)
    np.testing.assert_allclose(normalize(x)[1] @ grads[1], 0, atol=1e-7)
