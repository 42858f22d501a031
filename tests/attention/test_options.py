# SPDX-License-Identifier: Apache-2.0
"""Window, softcap, alibi slopes and sinks: values against the reference, alone and with all the rest."""

import itertools

import numpy as np
import pytest
from support.accuracy import assert_same_bits, check_attention
from support.arrays import qkv

import selfattn

CAUSAL = (False, "top_left", "bottom_right")
WINDOWS = [(0, 0), (3, 0), (0, 4), (2, 5), (None, 1), (6, None), (None, None), (1000, 1000), (1 << 70, 2)]

pytestmark = pytest.mark.usefixtures("isa")

# ---- each by itself ----


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize(("q_len", "kv_len"), [(13, 37), (37, 13), (40, 40), (1, 50)])
def test_window(rng, q_len, kv_len, causal, window):
    query, key, value = qkv(rng, batch=3, heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, value_dim=24)
    check_attention(query, key, value, causal=causal, window=window)
    lengths = np.array([kv_len, kv_len // 2, 0])
    check_attention(query, key, value, causal=causal, window=window, kv_lengths=lengths)


@pytest.mark.parametrize("window", [(0, 0), (70, 0), (200, 13), (None, 5), (5, None)], ids=str)
def test_window_over_many_keys(rng, window):
    query, key, value = qkv(rng, batch=1, q_len=420, kv_len=700, dim=20)
    check_attention(query, key, value, window=window)
    check_attention(query, key, value, window=window, causal="top_left")


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("causal", CAUSAL)
def test_a_window_is_a_mask_to_the_last_bit(rng, causal, window):
    q_len, kv_len = 41, 230
    query, key, value = qkv(rng, q_len=q_len, kv_len=kv_len)
    position = np.arange(q_len)[:, None] + (0 if causal == "top_left" else kv_len - q_len)
    left, right = (kv_len if side is None else min(side, kv_len) for side in window)
    mask = (np.arange(kv_len) >= position - left) & (np.arange(kv_len) <= position + right)
    expected = selfattn.attention(query, key, value, causal=causal, mask=mask)
    assert_same_bits(selfattn.attention(query, key, value, causal=causal, window=window), expected)


def test_a_window_of_one_key_is_its_value(rng):
    query, key, value = qkv(rng, q_len=33)
    np.testing.assert_allclose(selfattn.attention(query, key, value, window=(0, 0)), value, rtol=1e-6)
    top_left = selfattn.attention(query[:, :, :7], key, value, window=(0, 0), causal="top_left")
    np.testing.assert_allclose(top_left, value[:, :, :7], rtol=1e-6)
    no_diagonal = selfattn.attention(query[:, :, :7], key, value, window=(0, 0))
    np.testing.assert_allclose(no_diagonal, value[:, :, -7:], rtol=1e-6)


def test_rows_that_a_window_leaves_without_a_key(rng):
    """More queries than keys: the first of them stand before the first key."""
    query, key, value = qkv(rng, q_len=30, kv_len=10)
    out, lse = selfattn.attention(query, key, value, window=(4, 3), return_lse=True)
    assert not out[:, :, :17].any()
    assert np.isneginf(lse[:, :, :17]).all()
    assert np.isfinite(lse[:, :, 17:]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nothing_outside_a_window_reaches_a_query(rng, poison):
    query, key, value = qkv(rng, q_len=90)
    expected = selfattn.attention(query, key, value, window=(10, 10), return_lse=True)
    for array in (key, value):
        array[:, :, 45] = poison
    near = np.abs(np.arange(90) - 45) <= 10
    actual = selfattn.attention(query, key, value, window=(10, 10), return_lse=True)
    for ours, clean in zip(actual, expected, strict=True):
        assert_same_bits(ours[:, :, ~near], clean[:, :, ~near])
    assert np.isnan(actual[0][:, :, near]).any(axis=-1).all()


@pytest.mark.parametrize("softcap", [0.5, 1, 30.0, np.float32(50), 1e4])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_softcap(rng, softcap, size):
    query, key, value = qkv(rng, batch=4, heads=4, kv_heads=1, q_len=19, kv_len=60, value_dim=5)
    check_attention(query * np.float32(size), key, value, softcap=softcap)
    check_attention(query * np.float32(size), key, value, softcap=softcap, scale=-0.3, causal="bottom_right")


def test_a_softcap_bounds_the_scores(rng):
    query, key, value = qkv(rng, q_len=9, kv_len=40)
    weights = selfattn.attention_weights(query * np.float32(1e6), key, softcap=2.0)
    assert weights.min() > 0.9 * np.exp(-4) / 40
    lse = selfattn.attention(query * np.float32(1e6), key, value, softcap=2.0, return_lse=True)[1]
    assert (np.abs(lse - np.log(40)) < 2.001).all()


def test_a_softcap_comes_before_the_bias(rng):
    query, key, value = qkv(rng, q_len=9, kv_len=40)
    bias = np.where(np.arange(40) == 7, 1e4, 0).astype(np.float32)
    out = selfattn.attention(query, key, value, bias=bias, softcap=1.0)
    np.testing.assert_allclose(out, np.broadcast_to(value[:, :, 7:8], out.shape), rtol=1e-6)


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize(("q_len", "kv_len"), [(21, 50), (50, 21), (1, 300)])
def test_alibi_slopes(rng, q_len, kv_len, causal):
    query, key, value = qkv(rng, batch=3, heads=8, kv_heads=2, q_len=q_len, kv_len=kv_len, value_dim=9)
    slopes = selfattn.alibi_slopes(8)
    check_attention(query, key, value, alibi_slopes=slopes, causal=causal)
    lengths = np.array([kv_len, kv_len // 3, 1])
    check_attention(query, key, value, alibi_slopes=-slopes, causal=causal, kv_lengths=lengths, window=(9, 4))


def test_alibi_slopes_of_zero_change_nothing(rng):
    query, key, value = qkv(rng, heads=3, q_len=21, kv_len=50)
    expected = selfattn.attention(query, key, value)
    assert_same_bits(selfattn.attention(query, key, value, alibi_slopes=[0, 0, 0]), expected)


@pytest.mark.parametrize(
    "sinks", [[0.0, 0.0, 0.0, 0.0], [-3.0, 1.5, 20.0, -np.inf], [-1e4, 80.0, 40.0, -40.0]]
)
@pytest.mark.parametrize("kv_len", [0, 1, 60, 400])
def test_sinks(rng, kv_len, sinks):
    query, key, value = qkv(rng, heads=4, kv_heads=2, q_len=19, kv_len=kv_len, value_dim=12)
    mask = np.asarray(rng.random((19, kv_len)) < 0.5)
    mask[4] = False
    check_attention(query, key, value, sinks=np.array(sinks))
    check_attention(query, key, value, sinks=np.array(sinks), mask=mask)


def test_a_sink_takes_its_share_of_the_weights(rng):
    query, key, value = qkv(rng, heads=3, q_len=11, kv_len=70)
    sinks = np.array([-1.0, 0.0, 4.0])
    lse = selfattn.attention(query, key, value, sinks=sinks, return_lse=True)[1]
    weights = selfattn.attention_weights(query, key, sinks=sinks)
    share = np.exp(sinks[:, None] - lse)
    np.testing.assert_allclose(weights.sum(axis=-1) + share, 1, rtol=1e-5)
    assert (share > 1e-4).all()


def test_a_sink_of_minus_infinity_is_none(rng):
    query, key, value = qkv(rng, q_len=11, kv_len=70)
    expected = selfattn.attention(query, key, value, return_lse=True)
    actual = selfattn.attention(query, key, value, sinks=[-np.inf, -np.inf], return_lse=True)
    for ours, without in zip(actual, expected, strict=True):
        assert_same_bits(ours, without)


def test_a_row_without_keys_stays_zero_beside_a_sink(rng):
    query, key, value = qkv(rng, q_len=6, kv_len=40)
    out, lse = selfattn.attention(query, key, value, sinks=[5.0, 5.0], kv_lengths=[0, 3], return_lse=True)
    assert not out[0].any()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(lse[1]).all()


@pytest.mark.parametrize("options", [{"alibi_slopes": [0.5, 0.25]}, {"sinks": [1.0, -1.0]}], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
def test_numbers_per_head_of_every_dtype(rng, options, dtype):
    query, key, value = qkv(rng, q_len=6, kv_len=40)
    ((name, numbers),) = options.items()
    expected = selfattn.attention(query, key, value, **options)
    assert_same_bits(selfattn.attention(query, key, value, **{name: np.array(numbers, dtype)}), expected)
    integers = selfattn.attention(query, key, value, **{name: [2, 1]})
    assert_same_bits(selfattn.attention(query, key, value, **{name: np.array([2, 1], np.uint8)}), integers)


# ---- together ----


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize(
    ("q_len", "kv_len", "lengths"), [(13, 67, (67, 20)), (30, 11, (11, 0)), (2, 400, (399, 350))]
)
def test_all_options_together(rng, q_len, kv_len, lengths, causal):
    query, key, value = qkv(rng, heads=6, kv_heads=2, q_len=q_len, kv_len=kv_len, dim=24, value_dim=40)
    every = {
        "mask": rng.random((2, 6, q_len, kv_len)) < 0.8,
        "bias": rng.standard_normal((6, 1, kv_len)).astype(np.float32),
        "window": (kv_len // 2, 3),
        "softcap": 1.5,
        "alibi_slopes": selfattn.alibi_slopes(6),
        "sinks": rng.standard_normal(6),
        "kv_lengths": np.array(lengths),
    }
    for chosen in itertools.product([False, True], repeat=len(every)):
        options = dict(itertools.compress(every.items(), chosen))
        check_attention(query, key, value, causal=causal, **options)


@pytest.mark.parametrize("causal", [*CAUSAL, True])
def test_the_lengths_of_each_item_say_where_its_last_query_stands(rng, causal):
    """bottom_right goes by an item's own last key; the others by the array's."""
    q_len, kv_len, lengths = (7, 7, [7, 5]) if causal is True else (7, 30, [30, 19])
    query, key, value = qkv(rng, q_len=q_len, kv_len=kv_len)
    options = {"causal": causal, "window": (6, None), "alibi_slopes": [0.5, 0.25]}
    out = selfattn.attention(query, key, value, kv_lengths=lengths, **options)
    for item, length in enumerate(lengths):
        one = slice(item, item + 1)
        if causal == "bottom_right":
            alone = selfattn.attention(query[one], key[one, :, :length], value[one, :, :length], **options)
        else:
            mask = np.arange(kv_len) < length
            alone = selfattn.attention(query[one], key[one], value[one], mask=mask, **options)
        assert_same_bits(out[one], alone)


@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
@pytest.mark.parametrize("lengths", [None, [40, 0, 21], [40] * 3])
@pytest.mark.parametrize("leading", [(3,), (3, 2), (1,), ()])
def test_chosen_rows_keep_their_place(rng, leading, lengths, causal):
    query = rng.standard_normal((*leading, 4, 9, 16)).astype(np.float32)
    key = rng.standard_normal((1,) * (len(leading) > 1) + (*leading[1:], 2, 40, 16)).astype(np.float32)
    options = {
        "mask": rng.random((*leading, 4, 9, 40)) < 0.8,
        "bias": rng.standard_normal((9, 40)).astype(np.float32),
        "window": (25, 3),
        "alibi_slopes": selfattn.alibi_slopes(4),
        "softcap": 3.0,
        "sinks": np.arange(4),
        "causal": causal,
        "kv_lengths": None if lengths is None else lengths[: leading[0] if leading else 1],
    }
    whole = selfattn.attention_weights(query, key, **options)
    assert whole.any()
    for rows in ([0], [8, 2, 2], [-1, 3], [], np.arange(9, dtype=np.uint8)):
        chosen = selfattn.attention_weights(query, key, rows=rows, **options)
        assert_same_bits(chosen, whole[..., np.asarray(rows, np.intp), :])
