"""The self-attention cell against its specification, and what cells and heads share: batches, weights."""

import pickle

import numpy as np
import pytest
from layers.makers import D_MODEL, HEAD_DIM, grouped, random_cell, same_bits, words

from selfattn import reference
from selfattn.layers import MultiHeadSelfAttention, SelfAttentionCell


def in_float64(array):
    return array.astype(np.float64)


# ---- against the specification ----


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", [{}, {"causal": True}, {"scale": 0.1}])
def test_a_cell_is_its_specification(rng, bias, how):
    cell, x = random_cell(rng, bias), words(rng, 3, 9)
    expected = reference.self_attention_cell(in_float64(x), cell, **how)
    np.testing.assert_allclose(cell(x, **how), expected, rtol=1e-4, atol=1e-5)


def test_a_cell_with_lengths_is_its_specification(rng):
    cell, x = random_cell(rng), words(rng, 3, 9)
    expected = reference.self_attention_cell(in_float64(x), cell, lengths=np.array([9, 1, 4]))
    out = cell(x, lengths=[9, 1, 4])
    for b, length in enumerate([9, 1, 4]):
        np.testing.assert_allclose(out[b, :length], expected[b, :length], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(out[b, length:], 0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_weights_of_a_cell(rng, causal):
    cell, x = random_cell(rng), words(rng, 2, 6)
    query, key = (
        reference.linear(in_float64(x), getattr(cell, f"{role}_weight"), getattr(cell, f"{role}_bias"))
        for role in ("query", "key")
    )
    expected = reference.attention_weights(query[:, None], key[:, None], causal=causal)[:, 0]
    np.testing.assert_allclose(cell.attention_weights(x, causal=causal), expected, rtol=1e-4, atol=1e-6)
    same_bits(cell.attention_weights(x[0], causal=causal), cell.attention_weights(x, causal=causal)[0])


def test_attention_weights_are_zero_in_the_padding(rng):
    weights = random_cell(rng).attention_weights(words(rng, 2, 6), lengths=[4, 0])
    assert weights.shape == (2, 6, 6)
    np.testing.assert_allclose(weights[0, :4, :4].sum(axis=-1), 1, rtol=1e-6)
    assert weights[0, 4:].sum() == weights[0, :, 4:].sum() == weights[1].sum() == 0


def test_attention_weights_of_packed_words(rng):
    cell, x = random_cell(rng), words(rng, 7)
    weights = cell.attention_weights(x, cu_seqlens=[0, 3, 7])
    assert weights.shape == (2, 4, 4)
    same_bits(weights[0, :3, :3], cell.attention_weights(x[:3]))
    same_bits(weights[1], cell.attention_weights(x[3:]))


# ---- batches, for a cell and for heads ----


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_padded_packed_and_alone_give_the_same_bits(rng, make):
    layer, x, lengths = make(rng), words(rng, 4, 9), [9, 0, 1, 5]
    padded = layer(x, lengths=lengths)
    packed = layer(
        np.concatenate([x[b, :n] for b, n in enumerate(lengths)]), cu_seqlens=np.cumsum([0, *lengths])
    )
    same_bits(packed, np.concatenate([padded[b, :n] for b, n in enumerate(lengths)]))
    for b, n in enumerate(lengths):
        same_bits(padded[b, :n], layer(x[b, :n]))


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_nan_in_the_padding_stays_there(rng, make):
    layer, x = make(rng), words(rng, 2, 5)
    clean = layer(x, lengths=[5, 2])
    x[1, 2:] = np.nan
    same_bits(layer(x, lengths=[5, 2]), clean)


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_words_of_any_strides_give_the_same_bits(rng, make):
    layer, x = make(rng), words(rng, 6, 5)
    same_bits(layer(x[::-2]), layer(np.ascontiguousarray(x[::-2])))
    same_bits(layer(np.asfortranarray(x)), layer(x))
    misaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    same_bits(layer(misaligned), layer(x))


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_no_words_give_no_values(rng, make):
    layer = make(rng)
    width = layer(words(rng, 1)).shape[-1]
    assert layer(words(rng, 0)).shape == (0, width)
    assert layer(words(rng, 0, 4)).shape == (0, 4, width)
    assert layer(words(rng, 3, 0), lengths=[0, 0, 0]).shape == (3, 0, width)
    assert layer(words(rng, 0), cu_seqlens=[0]).shape == (0, width)
    assert layer(words(rng, 0), cu_seqlens=[0, 0, 0]).shape == (0, width)


# ---- weights ----


def test_weights_are_read_only_and_independent_of_the_callers_array(rng):
    query = rng.standard_normal((D_MODEL, HEAD_DIM)).astype(np.float32)
    cell = SelfAttentionCell(query, query, query)
    before = cell.query_weight.copy()
    query[:] = 0
    np.testing.assert_array_equal(cell.query_weight, before)
    with pytest.raises(ValueError, match="read-only"):
        cell.query_weight[0, 0] = 1
    with pytest.raises(AttributeError):
        cell.query_weight = query


def test_a_read_only_array_is_not_copied(rng):
    query = rng.standard_normal((D_MODEL, HEAD_DIM)).astype(np.float32)
    query.flags.writeable = False
    assert SelfAttentionCell(query, query, query).query_weight is query


def test_a_read_only_view_of_a_writable_array_is_copied(rng):
    query = rng.standard_normal((D_MODEL, HEAD_DIM)).astype(np.float32)
    view = query[:]
    view.flags.writeable = False
    cell = SelfAttentionCell(view, view, np.broadcast_to(query[0], query.shape))
    before = cell.query_weight.copy(), cell.value_weight.copy()
    query[:] = 0
    np.testing.assert_array_equal(cell.query_weight, before[0])
    np.testing.assert_array_equal(cell.value_weight, before[1])


def test_the_cells_of_heads_are_views(rng):
    heads = grouped(rng)
    assert np.shares_memory(heads.cells[1].query_weight, heads.query_weight)


def test_weights_of_any_strides_give_the_same_bits(rng):
    cell, x = random_cell(rng), words(rng, 6)
    turned = [np.asfortranarray(getattr(cell, f"{role}_weight")) for role in ("query", "key", "value")]
    same_bits(SelfAttentionCell(*turned, cell.query_bias, cell.key_bias, cell.value_bias)(x), cell(x))


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_pickling_keeps_the_result_and_the_protection(rng, make):
    layer, x = make(rng), words(rng, 6)
    back = pickle.loads(pickle.dumps(layer))
    same_bits(back(x), layer(x))
    assert not back.query_weight.flags.writeable


def test_initialize_has_unit_variance_outputs():
    rng = np.random.default_rng(0)
    cell = SelfAttentionCell.initialize(256, 64, value_dim=32, bias=True, rng=rng)
    assert (cell.d_model, cell.head_dim, cell.value_dim) == (256, 64, 32)
    np.testing.assert_array_equal(cell.value_bias, np.zeros(32))
    assert (rng.standard_normal((500, 256)) @ cell.query_weight).std() == pytest.approx(1, abs=0.05)
    heads = MultiHeadSelfAttention.initialize(256, 8, num_kv_heads=2, rng=rng)
    assert (heads.head_dim, heads.key_weight.shape, heads.query_bias) == (32, (256, 64), None)


def test_repr_shows_shapes_not_numbers(rng):
    assert "query_weight=24x8" in repr(random_cell(rng))
    assert "num_kv_heads=2" in repr(grouped(rng))


# ---- bad input ----


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_weights_that_are_not_finite_are_counted(bad):
    value = np.ones((8, 4))
    value[2:4, 1] = bad
    with pytest.raises(
        ValueError, match=r"value_weight holds 2 NaN or Inf .*32 values, the first at \[2, 1\]"
    ):
        SelfAttentionCell(eye(8, 4), eye(8, 4), value)


@pytest.mark.parametrize("dtype", [np.int64, bool, complex, object])
def test_weights_that_are_not_floating(dtype):
    with pytest.raises(TypeError, match="key_weight has dtype"):
        SelfAttentionCell(eye(8, 4), np.ones((8, 4), dtype), eye(8, 4))


F32 = np.float32
BAD_CALLS = {
    "float64": (np.zeros((5, D_MODEL)), {}, TypeError, r"x has dtype float64.*astype"),
    "rank": (np.zeros(D_MODEL, F32), {}, ValueError, r"x has shape \(24,\); it needs"),
    "four": (np.zeros((1, 1, 1, D_MODEL), F32), {}, ValueError, r"x has shape \(1, 1, 1, 24\); it needs"),
    "width": (np.zeros((5, 23), F32), {}, ValueError, r"x has shape \(5, 23\).* d_model=24"),
    "both": (np.zeros((5, D_MODEL), F32), {"lengths": [5], "cu_seqlens": [0, 5]}, ValueError, "both given"),
    "too long": (
        np.zeros((2, 5, D_MODEL), F32),
        {"lengths": [5, 6]},
        ValueError,
        r"lengths\[1\]=6.*seq_len=5",
    ),
    "negative": (np.zeros((2, 5, D_MODEL), F32), {"lengths": [-1, 5]}, ValueError, r"lengths\[0\]=-1"),
    "batch": (
        np.zeros((2, 5, D_MODEL), F32),
        {"lengths": [5]},
        ValueError,
        r"lengths has shape \(1,\).*\(2, 5",
    ),
    "no batch": (
        np.zeros((5, D_MODEL), F32),
        {"lengths": [5]},
        ValueError,
        r"lengths has shape \(1,\).*\(5, 24",
    ),
    "fractions": (np.zeros((1, 5, D_MODEL), F32), {"lengths": [2.0]}, TypeError, "lengths has dtype float64"),
    "start": (np.zeros((5, D_MODEL), F32), {"cu_seqlens": [1, 5]}, ValueError, "begins at 1 and ends at 5"),
    "end": (np.zeros((5, D_MODEL), F32), {"cu_seqlens": [0, 4]}, ValueError, "ends at 4.*tokens, 5"),
    "back": (
        np.zeros((5, D_MODEL), F32),
        {"cu_seqlens": [0, 4, 3, 5]},
        ValueError,
        r"cu_seqlens\[2\]=3 is less than cu_seqlens\[1\]=4",
    ),
    "none": (np.zeros((0, D_MODEL), F32), {"cu_seqlens": []}, ValueError, r"cu_seqlens has shape \(0,\)"),
    "padded": (
        np.zeros((1, 5, D_MODEL), F32),
        {"cu_seqlens": [0, 5]},
        ValueError,
        r"x has shape \(1, 5, 24\)",
    ),
}


@pytest.mark.parametrize("make", [random_cell, grouped])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_words_and_lengths(rng, make, name):
    x, how, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        make(rng)(x, **how)
