# SPDX-License-Identifier: Apache-2.0
"""Cells side by side: against the specification, and to the bit against cells alone."""

import numpy as np
import pytest
from support.accuracy import assert_as_exact_as_numpy
from support.encoder_families import HEADS, KV_HEADS, OPTIONS
from support.layer_makers import VALUE_DIM, grouped, random_cell, same_bits, words

import selfattn
from selfattn import reference
from selfattn.layers import LayerNorm, MultiHeadSelfAttention, RelativeBias, RMSNorm, RotaryPositions


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


# ---- the options of the operator ----


def with_options(rng, **settings):
    return grouped(rng, HEADS, KV_HEADS, **settings)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_its_specification(isa, rng, option):
    heads, x, lengths = with_options(rng, **OPTIONS[option](rng)), words(rng, 3, 30), np.array([30, 2, 17])
    naive = reference.self_attention(x, heads, lengths=lengths)
    exact = reference.self_attention(x.astype(np.float64), heads, lengths=lengths)
    real = np.arange(30) < lengths[:, None]
    assert_as_exact_as_numpy(heads(x, lengths=lengths)[real], naive[real], exact[real])


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_shows_in_the_result_and_in_the_weights(rng, option):
    settings, x = OPTIONS[option](rng), words(rng, 12)
    heads = with_options(rng, **settings)
    plain = MultiHeadSelfAttention(
        **{name: getattr(heads, name) for name in vars(grouped(rng)) if name not in (*settings, "_options")}
    )
    assert np.abs(heads(x) - plain(x)).max() > 1e-3
    assert np.abs(heads.attention_weights(x) - plain.attention_weights(x)).max() > 1e-3


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_of_heads_with_options_are_the_specification(rng, option):
    heads, x = with_options(rng, **OPTIONS[option](rng)), words(rng, 2, 9)
    expected = reference.self_attention_weights(x.astype(np.float64), heads, lengths=np.array([9, 4]))
    np.testing.assert_allclose(heads.attention_weights(x, lengths=[9, 4]), expected, rtol=1e-4, atol=1e-6)


def test_what_the_operator_takes_as_arguments_gives_the_operators_bits(rng):
    settings = {
        "window": (3, 1),
        "softcap": 0.7,
        "alibi_slopes": selfattn.alibi_slopes(HEADS),
        "sinks": rng.standard_normal(HEADS),
        "scale": 0.3,
    }
    heads, x = with_options(rng, **settings, causal=True), words(rng, 11)
    arrays = heads._project(x, 1)
    expected = selfattn.attention(*(a.swapaxes(0, 1) for a in arrays), **settings, causal=True).swapaxes(0, 1)
    same_bits(with_options_of(heads)(x), np.ascontiguousarray(expected).reshape(11, -1))


def with_options_of(heads):
    """The same heads without an output matrix."""
    own = {name: value for name, value in vars(heads).items() if name != "_options"}
    return MultiHeadSelfAttention(**own | {"output_weight": None, "output_bias": None})


def test_options_are_kept_as_checked_constants(rng):
    heads = with_options(rng, window=[np.int64(3), None], alibi_slopes=[1, 0.5, 0, 2], softcap=np.float32(2))
    assert heads.window == (3, None)
    assert heads.alibi_slopes == (1.0, 0.5, 0.0, 2.0)
    assert "alibi_slopes" not in heads.weights()
    assert heads.softcap == 2.0
    again = heads.replace(heads.weights())
    assert (again.window, again.alibi_slopes, again.softcap) == (heads.window, heads.alibi_slopes, 2.0)


def test_sinks_norms_and_tables_are_weights(rng):
    settings = {
        name: value
        for option in ("sinks", "norms of heads", "relative bias")
        for name, value in OPTIONS[option](rng).items()
    }
    weights = with_options(rng, **settings).weights()
    assert list(weights)[-4:] == ["sinks", "query_norm", "key_norm", "relative_bias"]
    assert weights["sinks"].dtype == np.float32
    assert not weights["sinks"].flags.writeable
    assert list(weights["relative_bias"]) == ["table"]


@pytest.mark.parametrize("option", OPTIONS)
def test_cells_say_what_they_cannot(rng, option):
    settings = OPTIONS[option](rng)
    with pytest.raises(ValueError, match=r"^cells have no ") as error:
        _ = with_options(rng, **settings).cells
    assert all(name in str(error.value) for name in settings if name != "causal")


def test_initialize_takes_the_options(rng):
    rotary = RotaryPositions()
    heads = MultiHeadSelfAttention.initialize(32, 4, window=(2, 2), rotary=rotary, causal=True, rng=rng)
    assert (heads.window, heads.rotary, heads.causal) == ((2, 2), rotary, True)
    with pytest.raises(TypeError, match="'bogus'"):
        MultiHeadSelfAttention.initialize(32, 4, bogus=1, rng=rng)


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


BAD_OPTIONS = {
    "window pair": ({"window": 3}, TypeError, r"window=3 must be a pair \(left, right\)"),
    "window sign": ({"window": (-1, 0)}, ValueError, r"window=\(-1, 0\) must not be negative"),
    "softcap": ({"softcap": 0.0}, ValueError, r"softcap=0\.0 must be at least"),
    "slopes count": ({"alibi_slopes": (1.0, 2.0)}, ValueError, r"alibi_slopes has shape \(2,\)"),
    "slopes inf": ({"alibi_slopes": (1, 2, np.inf, 0)}, ValueError, r"alibi_slopes\[2\]=inf must be finite"),
    "sinks count": (
        {"sinks": np.zeros(3)},
        ValueError,
        r"sinks has shape \(3,\); one number for each head is \(4,\)",
    ),
    "sinks nan": ({"sinks": np.full(4, np.nan)}, ValueError, "sinks holds 4 NaN or Inf"),
    "sinks dtype": ({"sinks": np.zeros(4, int)}, TypeError, "sinks has dtype int64"),
    "rotary": ({"rotary": 10000.0}, TypeError, "rotary is a float; it must be a RotaryPositions, or None"),
    "rotary wide": (
        {"rotary": RotaryPositions(rotary_dim=10)},
        ValueError,
        "rotary_dim=10 must be at most head_dim=8",
    ),
    "query norm": (
        {"query_norm": np.ones(8)},
        TypeError,
        "query_norm is a ndarray; it must be a LayerNorm or RMSNorm",
    ),
    "query width": (
        {"query_norm": RMSNorm(np.ones(16))},
        ValueError,
        r"query_norm is 16 wide; it must be head_dim=8, .* num_heads \* head_dim=32",
    ),
    "key width": (
        {"key_norm": LayerNorm(np.ones(32))},
        ValueError,
        r"key_norm is 32 wide; .* num_kv_heads \* head_dim=16",
    ),
    "relative bias": (
        {"relative_bias": np.zeros((8, 4))},
        TypeError,
        "relative_bias is a ndarray; it must be a Rel",
    ),
    "relative heads": (
        {"relative_bias": RelativeBias(np.zeros((8, 2)))},
        ValueError,
        "relative_bias is of 2 heads; it must be of num_heads=4",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_are_refused(rng, name):
    settings, error, message = BAD_OPTIONS[name]
    with pytest.raises(error, match=message):
        with_options(rng, **settings)


def test_from_cells_that_do_not_fit_together(rng):
    with pytest.raises(ValueError, match="0 cells"):
        MultiHeadSelfAttention.from_cells([])
    with pytest.raises(ValueError, match=r"value_dim differs: 5 in cells\[0\], 6 in cells\[1\]"):
        MultiHeadSelfAttention.from_cells([random_cell(rng), random_cell(rng, value_dim=6)])
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of num_heads=4"):
        MultiHeadSelfAttention.initialize(10, 4, rng=rng)
