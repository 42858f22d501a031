# SPDX-License-Identifier: Apache-2.0
"""The gradients of embedding tables and of rotary positions against plain loops and the definition."""

import numpy as np
import pytest
from support.layer_makers import same_bits

from selfattn.layers.embedding import embedding_backward, rotary_embedding_backward
from selfattn.layers.positions import rotary_embedding


def looped(grad_y, ids, num_rows):
    table = np.zeros((num_rows, grad_y.shape[-1]), np.float64)
    for i, grad in zip(ids.reshape(-1), grad_y.reshape(-1, grad_y.shape[-1]), strict=True):
        table[i] += grad
    return table.astype(grad_y.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (60,), (4, 30)])
def test_a_row_gets_the_sum_over_its_places(rng, shape, dtype):
    ids, grad_y = rng.integers(0, 20, shape), rng.standard_normal((*shape, 5)).astype(dtype)
    table = embedding_backward(grad_y, ids, 25)
    assert table.dtype == dtype
    rounding = np.finfo(dtype).eps
    np.testing.assert_allclose(table, looped(grad_y, ids, 25), rtol=rounding, atol=20 * rounding)


def test_a_row_gets_the_same_bits_whoever_else_is_looked_up(rng):
    ids, grad_y = rng.integers(0, 20, 300), rng.standard_normal((300, 5)).astype(np.float32)
    table = embedding_backward(grad_y, ids, 20)
    for row in range(20):
        same_bits(embedding_backward(grad_y[ids == row], ids[ids == row], 20)[row], table[row])


def test_many_places_of_one_row_are_summed_in_float64():
    grad_y = np.full((100_000, 1), 0.1, np.float32)
    expected = np.float32(np.float64(np.float32(0.1)) * 100_000)
    np.testing.assert_allclose(
        embedding_backward(grad_y, np.zeros(100_000, np.uint8), 1), expected, rtol=1e-7
    )


def test_no_places_give_zeros():
    np.testing.assert_array_equal(embedding_backward(np.zeros((0, 3)), np.zeros(0, int), 4), np.zeros((4, 3)))
    np.testing.assert_array_equal(
        embedding_backward(np.zeros((2, 0, 3)), np.zeros((2, 0)), 4), np.zeros((4, 3))
    )


def test_places_that_do_not_fit(rng):
    grad_y = np.zeros((3, 2))
    with pytest.raises(TypeError, match="ids has dtype float64; it must be integers"):
        embedding_backward(grad_y, np.zeros(3), 4)
    with pytest.raises(ValueError, match="ids holds 9223372036854775808, which is beyond int64"):
        embedding_backward(grad_y, np.full(3, 2**63, np.uint64), 4)
    with pytest.raises(TypeError, match="grad_y has dtype int64; it must be floating"):
        embedding_backward(grad_y.astype(np.int64), np.zeros(3, int), 4)
    with pytest.raises(ValueError, match=r"grad_y has shape \(3, 2\); with ids of shape \(2,\)"):
        embedding_backward(grad_y, np.zeros(2, int), 4)
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=f"ids holds {bad}; the table has the rows 0 to 3"):
            embedding_backward(grad_y, [0, bad, 1], 4)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", [np.arange(5, dtype=np.uint8), np.arange(10.0).reshape(2, 5)])
def test_the_gradient_through_rotary_positions_is_turned_back(rng, positions, interleaved):
    how = {"rotary_dim": 6, "interleaved": interleaved, "base": 100.0}
    x, grad_y = rng.standard_normal((2, 2, 3, 5, 8))
    grad_x = rotary_embedding_backward(grad_y, positions, **how)
    # the map is linear: <grad_y, rotary(x)> = <rotary_backward(grad_y), x> for all x
    for _ in range(10):
        x = rng.standard_normal(x.shape)
        np.testing.assert_allclose((grad_y * rotary_embedding(x, positions, **how)).sum(), (grad_x * x).sum())
