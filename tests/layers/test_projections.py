# SPDX-License-Identifier: Apache-2.0
"""The query, key and value matrices of a cell and of cells side by side."""

import numpy as np
import pytest
from support.layer_makers import grouped

from selfattn.layers import MultiHeadSelfAttention, SelfAttentionCell


def test_the_cells_of_heads_are_views(rng):
    heads = grouped(rng)
    assert np.shares_memory(heads.cells[1].query_weight, heads.query_weight)


def test_initialize_has_unit_variance_outputs():
    rng = np.random.default_rng(0)
    cell = SelfAttentionCell.initialize(256, 64, value_dim=32, bias=True, rng=rng)
    assert (cell.d_model, cell.head_dim, cell.value_dim) == (256, 64, 32)
    np.testing.assert_array_equal(cell.value_bias, np.zeros(32))
    assert (rng.standard_normal((500, 256)) @ cell.query_weight).std() == pytest.approx(1, abs=0.05)
    heads = MultiHeadSelfAttention.initialize(256, 8, num_kv_heads=2, rng=rng)
    assert (heads.head_dim, heads.key_weight.shape, heads.query_bias) == (32, (256, 64), None)


def eye(rows, columns):
    return np.eye(rows, columns, dtype=np.float32)


BAD_CELLS = {
    "rank": ((np.zeros(8), eye(8, 4), eye(8, 4)), r"query_weight has shape \(8,\)"),
    "d_model": ((eye(8, 4), eye(9, 4), eye(8, 4)), "d_model differs: 8 in query_weight, 9 in key_weight"),
    "head_dim": ((eye(8, 4), eye(8, 5), eye(8, 4)), "head_dim differs: 4 in query_weight, 5 in key_weight"),
    "bias": ((eye(8, 4), eye(8, 4), eye(8, 4), np.zeros(3)), "query_bias has 3 values.* 4"),
    "empty": ((eye(8, 0), eye(8, 0), eye(8, 4)), r"query_weight has shape \(8, 0\)"),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_cells_that_do_not_fit_together(name):
    arguments, message = BAD_CELLS[name]
    with pytest.raises(ValueError, match=message):
        SelfAttentionCell(*arguments)


@pytest.mark.parametrize("count", [4.0, "4", True])
def test_counts_of_heads_are_integers(count):
    eye = np.eye(8, dtype=np.float32)
    with pytest.raises(TypeError, match=f"num_heads={count!r} must be an integer"):
        MultiHeadSelfAttention(eye, eye, eye, num_heads=count)
    with pytest.raises(TypeError, match=f"num_kv_heads={count!r} must be an integer"):
        MultiHeadSelfAttention(eye, eye, eye, num_heads=4, num_kv_heads=count)
