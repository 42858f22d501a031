# SPDX-License-Identifier: Apache-2.0
"""The semantics of attention line by line: each is a place where other systems disagree."""

import math

import numpy as np
import pytest
from support.spec_arrays import arrays, qkv

from selfattn.reference import attention, attention_weights

INF = np.inf


def test_mask_true_attends():
    query, key, value = qkv(heads=1, kv_heads=1)
    mask = np.zeros((5, 7), dtype=bool)
    mask[:, 2] = True
    expected = np.broadcast_to(value[:, :, 2:3], (2, 1, 5, 3))
    np.testing.assert_allclose(attention(query, key, value, mask=mask), expected, rtol=1e-15)


def test_a_float_mask_is_refused():
    with pytest.raises(TypeError, match=r"mask must be bool .* float64"):
        attention(*qkv(), mask=np.zeros((5, 7)))


def test_bias_comes_after_softcap():
    query, key, _ = qkv()
    bias = np.zeros(7)
    bias[3] = 100.0  # would be capped to 1 if it came before
    weights = attention_weights(query, key, softcap=1.0, bias=bias)
    assert (weights[..., 3] > 1 - 1e-12).all()


def test_bias_of_minus_infinity_masks():
    query, key, value = qkv()
    bias = np.where(np.arange(7) < 4, 0.5, -INF)
    value[:, :, 4:], key[:, :, 5:] = np.nan, INF
    expected = attention(query, key, value, mask=np.arange(7) < 4)
    np.testing.assert_allclose(attention(query, key, value, bias=bias), expected, rtol=1e-12)
    assert np.isfinite(expected).all()


def test_all_masks_hold():
    query, key, _ = qkv(q_len=7)
    mask = np.arange(7) != 1
    weights = attention_weights(
        query, key, mask=mask, causal=True, window=(3, None), kv_lengths=np.array([5, 7])
    )
    i, j = np.indices((7, 7))
    together = (j != 1) & (j <= i) & (j >= i - 3)
    np.testing.assert_array_equal(weights[1] > 0, np.broadcast_to(together, (4, 7, 7)))
    np.testing.assert_array_equal(weights[0] > 0, np.broadcast_to(together & (j < 5), (4, 7, 7)))


@pytest.mark.parametrize(("q_len", "kv_len"), [(3, 5), (5, 3)])
def test_causal_alignments(q_len, kv_len):
    query, key = arrays((1, q_len, 4), (1, kv_len, 4))
    i, j = np.indices((q_len, kv_len))
    top = attention_weights(query, key, causal="top_left")[0] > 0
    bottom = attention_weights(query, key, causal="bottom_right")[0] > 0
    np.testing.assert_array_equal(top, j <= i)
    np.testing.assert_array_equal(bottom, j <= i + kv_len - q_len)


def test_causal_true_with_unequal_lengths_names_both():
    with pytest.raises(ValueError, match=r"q_len=5 and kv_len=7.*top_left.*bottom_right"):
        attention(*qkv(), causal=True)


def test_an_unknown_causal_is_refused():
    with pytest.raises(ValueError, match="causal='left'"):
        attention(*qkv(), causal="left")


def test_bottom_right_measures_from_the_last_key_of_each_item():
    query, key = arrays((3, 1, 2, 4), (3, 1, 5, 4))
    given = {"causal": "bottom_right", "kv_lengths": np.array([5, 3, 1])}
    i, j = np.indices((2, 5))
    for item, length in enumerate(given["kv_lengths"]):
        position = i + length - 2
        seen = attention_weights(query, key, **given)[item, 0] > 0
        np.testing.assert_array_equal(seen, j <= position)
        near = attention_weights(query, key, window=(1, None), **given)[item, 0] > 0
        np.testing.assert_array_equal(near, (j <= position) & (j >= position - 1))


@pytest.mark.parametrize("causal", [False, "top_left"])
def test_otherwise_lengths_do_not_move_the_queries(causal):
    query, key = arrays((2, 1, 2, 4), (2, 1, 5, 4))
    given = {"causal": causal, "window": (1, 0), "kv_lengths": np.array([5, 3])}
    seen = attention_weights(query, key, **given)[:, 0] > 0
    i, j = np.indices((2, 5))
    position = i if causal else i + 3
    for item, length in enumerate((5, 3)):
        expected = (j >= position - 1) & (j <= position) & (j < length)
        np.testing.assert_array_equal(seen[item], expected)
    padded_self_attention = attention_weights(key, key, causal=True, kv_lengths=np.array([5, 3]))[:, 0] > 0
    i, j = np.indices((5, 5))
    np.testing.assert_array_equal(padded_self_attention[1], (j <= i) & (j < 3))


@pytest.mark.parametrize("window", [(0, 0), (2, 0), (None, 1), (1, None), (None, None), (0, 10)])
def test_window_is_inclusive_and_none_is_open(window):
    query, key = arrays((1, 6, 4), (1, 6, 4))
    left, right = (99 if side is None else side for side in window)
    i, j = np.indices((6, 6))
    seen = attention_weights(query, key, window=window)[0] > 0
    np.testing.assert_array_equal(seen, (j >= i - left) & (j <= i + right))


def test_a_row_with_no_key_is_zero_and_minus_infinity():
    for given in (
        {"mask": np.zeros((5, 7), dtype=bool)},
        {"bias": np.full(7, -INF)},
        {"kv_lengths": np.array([0, 0])},
        {"window": (-9, None)},
        {"kv_lengths": np.array([0, 0]), "sinks": np.ones(4)},
    ):
        out, lse = attention(*qkv(), return_lse=True, **given)
        np.testing.assert_array_equal(out, 0)
        np.testing.assert_array_equal(lse, -INF)
        np.testing.assert_array_equal(attention_weights(*qkv()[:2], **given), 0)


@pytest.mark.parametrize("poison", [np.nan, INF, -INF, 1e308])
def test_masked_keys_and_values_are_never_read(poison):
    query, key, value = qkv()
    mask = np.random.default_rng(4).random((2, 4, 5, 7)) < 0.5
    mask[..., 6] = False
    clean, clean_lse = attention(query, key, value, mask=mask, return_lse=True)
    key[:, :, 6], value[:, :, 6] = poison, poison
    out, lse = attention(query, key, value, mask=mask, return_lse=True)
    np.testing.assert_array_equal(out, clean)
    np.testing.assert_array_equal(lse, clean_lse)


@pytest.mark.parametrize("array", ["key", "value"])
def test_nan_reaches_exactly_the_rows_that_attend_to_it(array):
    query, key, value = qkv(kv_heads=4)
    mask = np.random.default_rng(5).random((2, 4, 5, 7)) < 0.5
    clean = attention(query, key, value, mask=mask)
    if array == "key":
        key[0, 1, 3, 2] = np.nan
    else:
        value[0, 1, 3] = np.nan
    out = attention(query, key, value, mask=mask)
    hit = np.zeros((2, 4, 5), dtype=bool)
    hit[0, 1] = mask[0, 1, :, 3]
    assert 0 < hit.sum() < 5
    np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(hit[..., None], out.shape))
    np.testing.assert_allclose(out[~hit], clean[~hit], rtol=1e-14)


def test_nan_in_one_channel_of_a_value_stays_in_that_channel():
    query, key, value = qkv(heads=1, kv_heads=1)
    value[0, 0, 3, 1] = np.nan
    out = attention(query, key, value)
    np.testing.assert_array_equal(np.isnan(out).any(axis=(1, 2)), [[False, True, False], [False] * 3])


def test_nan_in_a_query_reaches_its_row_only():
    query, key, value = qkv()
    query[1, 2, 3, 0] = np.nan
    out, lse = attention(query, key, value, return_lse=True)
    hit = np.zeros((2, 4, 5), dtype=bool)
    hit[1, 2, 3] = True
    np.testing.assert_array_equal(np.isnan(lse), hit)
    np.testing.assert_array_equal(np.isnan(out).all(axis=-1), hit)


def test_an_attended_infinite_value_arrives():
    query, key, value = qkv(heads=1, kv_heads=1)
    value[0, 0, 3, 1] = INF
    out = attention(query, key, value)
    np.testing.assert_array_equal(out[0, 0, :, 1], INF)
    assert np.isfinite(out[0, 0, :, 0]).all()


def test_lse_is_the_logarithm_of_the_sum():
    query, key, value = qkv(kv_heads=4)
    _, lse = attention(query, key, value, return_lse=True)
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(8)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(axis=-1)), rtol=1e-13)


def test_a_score_of_minus_infinity_is_a_masked_key():
    query, key, value = np.ones((1, 1, 1)), np.array([[[-INF], [0.0]]]), np.array([[[np.nan], [2.0]]])
    np.testing.assert_array_equal(attention(query, key, value), [[[2.0]]])


def test_large_scores_do_not_overflow():
    query, key, value = np.full((1, 1, 1), 1e4), np.array([[[1.0], [0.5]]]), np.array([[[1.0], [5.0]]])
    out, lse = attention(query, key, value, return_lse=True)
    assert out[0, 0, 0] == 1.0
    assert lse[0, 0] == 1e4


def test_a_large_sink_takes_all_and_does_not_overflow():
    out, lse = attention(*qkv(), sinks=np.full(4, 1e4), return_lse=True)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(lse, 1e4)


def test_scale_zero_and_negative_are_legal():
    query, key, value = qkv(kv_heads=4)
    mean = np.broadcast_to(value.mean(axis=-2, keepdims=True), (2, 4, 5, 3))
    np.testing.assert_allclose(attention(query, key, value, scale=0), mean, rtol=1e-12)
    np.testing.assert_allclose(
        attention(query, key, value, scale=-0.5), attention(-query, key, value, scale=0.5), rtol=1e-14
    )


@pytest.mark.parametrize("scale", [np.nan, INF])
def test_scale_must_be_finite(scale):
    with pytest.raises(ValueError, match=r"scale=.* must be finite"):
        attention(*qkv(), scale=scale)


def test_zero_sizes_give_empty_or_zero_results():
    assert attention(*qkv(batch=0)).shape == (0, 4, 5, 3)
    assert attention(*qkv(q_len=0)).shape == (2, 4, 0, 3)
    out, lse = attention(*qkv(kv_len=0), return_lse=True)
    np.testing.assert_array_equal(out, np.zeros((2, 4, 5, 3)))
    np.testing.assert_array_equal(lse, np.full((2, 4, 5), -INF))


@pytest.mark.parametrize(("heads", "kv_heads"), [(10, 4), (2, 4), (0, 2), (4, 0)])
def test_head_counts_that_do_not_divide_name_both(heads, kv_heads):
    with pytest.raises(ValueError, match=f"num_heads={heads} is not a multiple of num_kv_heads={kv_heads}"):
        attention(*qkv(heads=heads, kv_heads=kv_heads))


def test_a_mask_cannot_enlarge_the_result():
    with pytest.raises(ValueError, match="broadcast"):
        attention(*qkv(batch=1), mask=np.ones((3, 4, 5, 7), dtype=bool))


def test_kv_lengths_equals_cutting_the_keys():
    query, key, value = qkv()
    out = attention(query, key, value, kv_lengths=np.array([4, 7]))
    np.testing.assert_allclose(out[0], attention(query[0], key[0, :, :4], value[0, :, :4]), rtol=1e-13)
    np.testing.assert_allclose(out[1], attention(query[1], key[1], value[1]), rtol=1e-13)
