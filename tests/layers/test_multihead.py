"""Cells side by side: against the specification, and to the bit against cells alone."""

import numpy as np
import pytest
from support.layer_makers import VALUE_DIM, grouped, random_cell, same_bits, words

from selfattn import reference
from selfattn.layers import MultiHeadSelfAttention


@pytest.mark.parametrize("settings", [{}, {"causal": True}, {"scale": -0.2}])
def test_heads_are_their_specification(rng, settings):
    heads, x = grouped(rng, **settings), words(rng, 3, 9)
    expected = reference.self_attention(x.astype(np.float64), heads)
    np.testing.assert_allclose(heads(x), expected, rtol=1e-4, atol=1e-4)


def test_attention_weights_of_heads_are_those_of_the_cells(rng):
    heads, x = grouped(rng, causal=True), words(rng, 2, 6)
    together = heads.attention_weights(x, lengths=[6, 3])
    assert together.shape == (2, 6, 6, 6)
    for head, cell in enumerate(heads.cells):
        same_bits(together[:, head], cell.attention_weights(x, lengths=[6, 3], causal=True))


# ---- cells side by side ----


@pytest.mark.parametrize("bias", [False, True])
def test_from_cells_and_back_keeps_every_bit(rng, bias):
    cells = [random_cell(rng, bias) for _ in range(3)]
    for cell, back in zip(cells, MultiHeadSelfAttention.from_cells(cells).cells, strict=True):
        for name in vars(cell):
            before, after = getattr(cell, name), getattr(back, name)
            if before is None:
                assert after is None
            else:
                same_bits(np.ascontiguousarray(before), np.ascontiguousarray(after))


def test_cells_side_by_side_give_the_bits_of_cells_alone(rng):
    cells, x = [random_cell(rng) for _ in range(3)], words(rng, 2, 6)
    heads = MultiHeadSelfAttention.from_cells(cells)
    same_bits(heads(x), np.concatenate([cell(x) for cell in cells], axis=-1))
    output_weight = rng.standard_normal((3 * VALUE_DIM, 7)).astype(np.float32)
    mixed = MultiHeadSelfAttention.from_cells(cells, output_weight)
    np.testing.assert_allclose(mixed(x), heads(x) @ output_weight, rtol=1e-4, atol=1e-5)


def test_cells_of_one_group_share_key_and_value(rng):
    heads, x = grouped(rng), words(rng, 2, 6)
    cells = heads.cells
    assert len(cells) == 6
    assert np.shares_memory(cells[0].key_weight, cells[2].key_weight)
    assert not np.shares_memory(cells[2].key_weight, cells[3].key_weight)
    apart = MultiHeadSelfAttention.from_cells(cells, heads.output_weight, heads.output_bias)
    assert apart.num_kv_heads == 6
    same_bits(apart(x), heads(x))


def test_a_cell_without_bias_beside_one_with_bias_gets_zeros(rng):
    heads = MultiHeadSelfAttention.from_cells([random_cell(rng, False), random_cell(rng, True)])
    np.testing.assert_array_equal(heads.cells[0].query_bias, 0)
    assert np.abs(heads.cells[1].query_bias).min() > 0


# ---- bad input ----


def eye(rows, columns):
    return np.eye(rows, columns, dtype=np.float32)


BAD_HEADS = {
    "head counts": ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
    "no heads": ({"num_heads": 0}, "num_heads=0"),
    "query columns": ({"num_heads": 5}, "query_weight has 12 columns, not a multiple of num_heads=5"),
    "head_dim": ({"num_heads": 4, "num_kv_heads": 2}, "head_dim differs: 3 in query_weight, 6 in key_weight"),
    "output rows": ({"num_heads": 4, "output_weight": eye(9, 8)}, "output_weight has 9 rows.* need 12"),
    "output bias": ({"num_heads": 4, "output_bias": np.zeros(8)}, "output_bias needs an output_weight"),
    "scale": ({"num_heads": 4, "scale": np.inf}, "scale=inf must be finite"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_heads_that_do_not_fit_together(name):
    settings, message = BAD_HEADS[name]
    with pytest.raises(ValueError, match=message):
        MultiHeadSelfAttention(eye(8, 12), eye(8, 12), eye(8, 12), **settings)


def test_from_cells_that_do_not_fit_together(rng):
    with pytest.raises(ValueError, match="0 cells"):
        MultiHeadSelfAttention.from_cells([])
    with pytest.raises(ValueError, match=r"value_dim differs: 5 in cells\[0\], 6 in cells\[1\]"):
        MultiHeadSelfAttention.from_cells([random_cell(rng), random_cell(rng, value_dim=6)])
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of num_heads=4"):
        MultiHeadSelfAttention.initialize(10, 4, rng=rng)
