# SPDX-License-Identifier: Apache-2.0
"""The specification against hand-computed cases, an independent loop, and the laws of attention."""

import itertools
import math

import numpy as np
import pytest
from support.spec_arrays import arrays, qkv

from selfattn import reference
from selfattn.reference import attention, attention_weights

INF = np.inf


def one_row(query, keys, values, attended, score):
    """Attention of one query, a loop over the keys it attends to, in Python floats."""
    scores = {j: score(j, math.fsum(a * b for a, b in zip(query, keys[j], strict=True))) for j in attended}
    scores = {j: s for j, s in scores.items() if s != -INF}
    if not scores:
        return np.zeros(values.shape[1]), -INF
    top = max(scores.values())
    total = math.fsum(math.exp(s - top) for s in scores.values())
    out = [
        math.fsum(math.exp(s - top) / total * values[j, c] for j, s in scores.items())
        for c in range(values.shape[1])
    ]
    return np.array(out), top + math.log(total)


# ---- by hand ----


def test_two_by_two_by_hand():
    query = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # one head, two queries
    key = np.array([[[math.log(3), 0.0], [0.0, math.log(2)]]])
    value = np.array([[[4.0], [8.0]]])
    out, lse = attention(query, key, value, scale=1.0, return_lse=True)
    # row 0: scores log 3 and 0 -> weights 3/4, 1/4; row 1: scores 0 and log 4 -> weights 1/5, 4/5
    np.testing.assert_allclose(out[0, :, 0], [5.0, 7.2], rtol=1e-15)
    np.testing.assert_allclose(lse[0], [math.log(4), math.log(5)], rtol=1e-15)
    weights = attention_weights(query, key, scale=1.0)
    np.testing.assert_allclose(weights[0], [[0.75, 0.25], [0.2, 0.8]], rtol=1e-15)


def test_two_by_two_causal_by_hand():
    query, key = np.zeros((1, 2, 1)), np.zeros((1, 2, 1))
    value = np.array([[[2.0], [6.0]]])
    np.testing.assert_array_equal(attention(query, key, value, causal=True)[0, :, 0], [2.0, 4.0])


def test_sink_by_hand():
    query, key, value = np.zeros((1, 1, 1)), np.zeros((1, 2, 1)), np.array([[[3.0], [6.0]]])
    out, lse = attention(query, key, value, sinks=np.array([0.0]), return_lse=True)
    np.testing.assert_allclose(out[0, 0, 0], 3.0, rtol=1e-15)  # thirds: the sink takes one and gives no value
    np.testing.assert_allclose(lse[0, 0], math.log(3), rtol=1e-15)


# ---- an independent loop ----


FEATURES = ["mask", "bias", "window", "kv_lengths", "softcap", "alibi_slopes", "sinks"]
COMBINATIONS = [
    (),
    *itertools.combinations(FEATURES, 1),
    *itertools.combinations(FEATURES, 2),
    tuple(FEATURES),
]


@pytest.mark.parametrize("features", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_matches_an_independent_loop(features, causal):
    query, key, value = qkv()
    rng = np.random.default_rng(1)
    given = {
        "mask": rng.random((4, 1, 7)) < 0.7,
        "bias": rng.standard_normal((2, 1, 5, 7)),
        "window": (2, 1),
        "kv_lengths": np.array([7, 3]),
        "softcap": 1.5,
        "alibi_slopes": np.array([1.0, 0.5, 0.25, 0.125]),
        "sinks": rng.standard_normal(4),
    }
    given = {name: given[name] for name in features}
    out, lse = attention(query, key, value, causal=causal, scale=0.3, return_lse=True, **given)

    mask = np.broadcast_to(given.get("mask", True), (2, 4, 5, 7))
    bias = np.broadcast_to(given.get("bias", 0.0), (2, 4, 5, 7))
    for b, h, i in itertools.product(range(2), range(4), range(5)):
        position = i if causal == "top_left" else i + 2
        if causal == "bottom_right" and "kv_lengths" in given:
            position = i + given["kv_lengths"][b] - 5

        def sees(j, b=b, h=h, i=i, position=position):
            return (
                mask[b, h, i, j]
                and (not causal or j <= position)
                and ("window" not in given or position - 2 <= j <= position + 1)
                and ("kv_lengths" not in given or j < given["kv_lengths"][b])
            )

        def score(j, dot, b=b, h=h, i=i, position=position):
            s = dot * 0.3
            if "softcap" in given:
                s = 1.5 * math.tanh(s / 1.5)
            if "alibi_slopes" in given:
                s -= given["alibi_slopes"][h] * abs(position - j)
            return s + bias[b, h, i, j]

        attended = [j for j in range(7) if sees(j)]
        row, row_lse = one_row(query[b, h, i], key[b, h // 2], value[b, h // 2], attended, score)
        if "sinks" in given and attended:
            sink = given["sinks"][h]
            with_sink = np.logaddexp(row_lse, sink)
            row, row_lse = row * math.exp(row_lse - with_sink), with_sink
        np.testing.assert_allclose(out[b, h, i], row, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse[b, h, i], row_lse, rtol=1e-12, atol=1e-14)


# ---- laws ----


def test_rows_of_weights_sum_to_one():
    query, key, _ = qkv()
    np.testing.assert_allclose(attention_weights(query, key).sum(axis=-1), 1, rtol=1e-14)


def test_weights_times_values_is_the_output():
    query, key, value = qkv(kv_heads=4)
    weights = attention_weights(query, key, causal="bottom_right", softcap=2.0)
    out = attention(query, key, value, causal="bottom_right", softcap=2.0)
    np.testing.assert_allclose(weights @ value, out, rtol=1e-14)


def test_rows_selects_queries():
    query, key, _ = qkv()
    every = attention_weights(query, key, causal="bottom_right")
    np.testing.assert_array_equal(
        attention_weights(query, key, causal="bottom_right", rows=[4, 0]), every[:, :, [4, 0]]
    )


def test_column_sums_add_up_what_each_key_receives():
    query, key, _ = qkv()
    given = {"causal": "bottom_right", "kv_lengths": np.array([7, 4]), "sinks": np.ones(4)}
    sums = reference.attention_column_sums(query, key, **given)
    assert sums.shape == (2, 4, 7)
    np.testing.assert_array_equal(sums, attention_weights(query, key, **given).sum(axis=2))
    np.testing.assert_array_equal(sums[1, :, 4:], 0)


def test_permuting_keys_changes_nothing_and_permuting_queries_permutes_rows():
    query, key, value = qkv()
    keys, queries = np.random.default_rng(2).permutation(7), np.random.default_rng(3).permutation(5)
    out = attention(query, key, value)
    np.testing.assert_allclose(attention(query, key[:, :, keys], value[:, :, keys]), out, rtol=1e-13)
    np.testing.assert_allclose(attention(query[:, :, queries], key, value), out[:, :, queries], rtol=1e-13)


def test_float32_stays_float32_and_agrees_with_float64():
    narrow = qkv(dtype=np.float32)
    out = attention(*narrow)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, attention(*(a.astype(np.float64) for a in narrow)), rtol=1e-4, atol=1e-6)


def test_float16_computes_in_float32():
    half = qkv(dtype=np.float16)
    out = attention(*half)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, attention(*(a.astype(np.float32) for a in half)))


def test_grouped_heads_read_their_own_key_head():
    query, key, value = qkv(heads=6, kv_heads=2)
    repeated = attention(query, np.repeat(key, 3, axis=1), np.repeat(value, 3, axis=1))
    np.testing.assert_array_equal(attention(query, key, value), repeated)


def test_leading_dimensions_broadcast():
    (query,) = arrays((3, 1, 2, 4, 8))
    key, value = arrays((5, 2, 6, 8), (2, 6, 3), seed=1)
    out = attention(query, key, value)
    assert out.shape == (3, 5, 2, 4, 3)
    np.testing.assert_allclose(out[1, 2], attention(query[1, 0], key[2], value), rtol=1e-13)


# ---- the pieces of a layer ----


def test_layer_norm_by_hand():
    out = reference.layer_norm(np.array([[1.0, 3.0]]), np.array([2.0, 1.0]), np.array([0.0, 10.0]), eps=0.0)
    np.testing.assert_allclose(out, [[-2.0, 11.0]], rtol=1e-15)


def test_rms_norm_by_hand():
    out = reference.rms_norm(np.array([[3.0, 4.0]]), np.array([1.0, 2.0]), eps=0.0)
    np.testing.assert_allclose(out, [[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]], rtol=1e-15)


def test_norms_take_float64_statistics_of_float32():
    x = np.array([[1e4, 1e4 + 1, 1e4 + 2]], dtype=np.float32)
    out = reference.layer_norm(x, np.ones(3), eps=0.0)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[-math.sqrt(1.5), 0, math.sqrt(1.5)]], rtol=1e-6)


def test_activations_at_known_points():
    x = np.array([-1.0, 0.0, 1.0, 3.0])
    phi = [0.15865525393145707, 0.5, 0.8413447460685429, 0.9986501019683699]
    np.testing.assert_allclose(reference.gelu(x), x * phi, rtol=1e-14)
    np.testing.assert_allclose(reference.gelu_tanh(x), reference.gelu(x), atol=1e-3)
    assert np.abs(reference.gelu_tanh(x) - reference.gelu(x)).max() > 1e-5  # and yet another function
    np.testing.assert_array_equal(reference.relu(x), [0, 0, 1, 3])
    np.testing.assert_allclose(reference.silu(x), x / (1 + np.exp(-x)), rtol=1e-15)


@pytest.mark.parametrize("name", sorted(reference.ACTIVATIONS))
def test_activations_keep_dtype_shape_and_nan(name):
    function = reference.ACTIVATIONS[name]
    out = function(np.array([[np.nan, 1.0, -200.0]], dtype=np.float32))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(out), [[True, False, False]])
    assert function(np.zeros((0, 3), np.float32)).shape == (0, 3)
