# SPDX-License-Identifier: Apache-2.0
"""The weights of a layer as a tree of arrays, and a layer made again from one."""

import pickle
from functools import partial

import numpy as np
import pytest
from support.derivatives import leaves
from support.layer_makers import (
    D_MODEL,
    HEAD_DIM,
    encoder,
    grouped,
    layer,
    norm,
    random_cell,
    same_bits,
    words,
)

from selfattn.layers import (
    EncoderLayer,
    FeedForward,
    MultiHeadSelfAttention,
    SelfAttentionCell,
)


def test_the_structure_of_the_weights(rng):
    stack = encoder(rng, final=True)
    names = {name for name, _ in leaves(stack.weights())}
    assert {"layers.1.attention.query_weight", "layers.0.attention_norm.bias", "final_norm.weight"} <= names
    assert list(stack.weights()["layers"][0]) == [
        "attention",
        "attention_norm",
        "feed_forward",
        "feed_forward_norm",
    ]
    assert set(random_cell(rng, bias=False).weights()) == {"query_weight", "key_weight", "value_weight"}
    assert set(norm(rng, "rms").weights()) == {"weight"}
    assert list(encoder(rng).weights()) == ["layers"]


@pytest.mark.parametrize("make", [random_cell, grouped, norm, layer, partial(encoder, final=True)])
def test_replace_gives_a_layer_of_the_same_settings(rng, make):
    one, other, x = make(rng), make(rng), words(rng, 3, 5)
    replaced = one.replace(other.weights())
    same_bits(replaced(x), other(x))
    for (name, new), (_, old) in zip(leaves(replaced.weights()), leaves(other.weights()), strict=True):
        assert new.shape == old.shape, name
        same_bits(new, old)
    causal = grouped(rng, causal=True, scale=0.5)
    assert causal.replace(grouped(rng).weights()).causal
    assert causal.replace(grouped(rng).weights()).scale == 0.5


def test_weights_that_do_not_fit_the_layer(rng):
    stack = encoder(rng)
    weights = stack.weights()
    del weights["layers"][1]["feed_forward"]["up_bias"]
    with pytest.raises(
        ValueError,
        match=r"layers\.1\.feed_forward\.weights holds up_weight, down_weight, down_bias; this FeedFor",
    ):
        stack.replace(weights)
    weights = stack.weights()
    weights["layers"][1]["attention"]["key_weight"] = np.full((24, 12), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"^layers\.1\.attention\.key_weight holds 288 NaN or Inf"):
        stack.replace(weights)
    with pytest.raises(TypeError, match=r"^layers\.0\.weights is a list; it must be a dict"):
        stack.replace({"layers": [[], []]})
    with pytest.raises(TypeError, match="layers is a int; it must be a list"):
        stack.replace({"layers": 2})
    with pytest.raises(ValueError, match="layers holds the weights of 1 layers; there are 2"):
        stack.replace({"layers": stack.weights()["layers"][:1]})
    cell = random_cell(rng)
    with pytest.raises(
        ValueError, match=r"key_weight has shape \(8, 24\); it replaces one of shape \(24, 8\)"
    ):
        cell.replace(cell.weights() | {"key_weight": cell.key_weight.T})


# ---- what a weight is ----


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


def test_repr_shows_shapes_not_numbers(rng):
    assert "query_weight=24x8" in repr(random_cell(rng))
    assert "num_kv_heads=2" in repr(grouped(rng))


def eye(rows, columns):
    return np.eye(rows, columns, dtype=np.float32)


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


FINITE, NUMBER = "must be finite in float32", "must be a number"
SCALES = [
    (1e39, ValueError, FINITE),
    (-1e39, ValueError, FINITE),
    (10**400, ValueError, FINITE),
    (np.nan, ValueError, FINITE),
    ("1", TypeError, NUMBER),
    (True, TypeError, NUMBER),
]


@pytest.mark.parametrize(("scale", "error", "message"), SCALES)
def test_scale_is_a_number_that_float32_holds(rng, scale, error, message):
    with pytest.raises(error, match=f"scale=.* {message}"):
        grouped(rng, scale=scale)
    cell, x = random_cell(rng), words(rng, 3)
    for call in (cell, cell.attention_weights):
        with pytest.raises(error, match=f"scale=.* {message}"):
            call(x, scale=scale)


@pytest.mark.parametrize("causal", ["bottom_right", "top_left", 1, None])
def test_causal_is_true_or_false(rng, causal):
    with pytest.raises(ValueError, match=f"causal={causal!r} must be True or False"):
        grouped(rng, causal=causal)
    with pytest.raises(ValueError, match=f"causal={causal!r} must be True or False"):
        random_cell(rng)(words(rng, 3), causal=causal)


@pytest.mark.parametrize("rng", [None, 0])
@pytest.mark.parametrize(
    ("cls", "sizes"),
    [
        (SelfAttentionCell, (8, 4)),
        (MultiHeadSelfAttention, (8, 2)),
        (FeedForward, (8, 16)),
        (EncoderLayer, (8, 2, 16)),
    ],
)
def test_rng_is_a_generator(cls, sizes, rng):
    with pytest.raises(TypeError, match=rf"rng is a {type(rng).__name__}; .*default_rng"):
        cls.initialize(*sizes, rng=rng)
