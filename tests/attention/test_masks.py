# SPDX-License-Identifier: Apache-2.0
"""Masks: every broadcastable shape, causal in its four forms, lengths, and what a mask keeps out."""

import itertools

import numpy as np
import pytest
from support.accuracy import assert_same_bits, check_attention
from support.arrays import qkv

import selfattn

BATCH, HEADS, Q_LEN, KV_LEN = 2, 3, 13, 37
FULL = (BATCH, HEADS, Q_LEN, KV_LEN)
CAUSAL = (False, "top_left", "bottom_right")
SHAPES = [
    shape[4 - rank :]
    for rank in range(5)
    for shape in itertools.product(*[(1,)] * (4 - rank), *[(n, 1) for n in FULL[4 - rank :]])
]

pytestmark = pytest.mark.usefixtures("isa")


def masked_inputs(rng):
    return qkv(rng, batch=BATCH, heads=HEADS, q_len=Q_LEN, kv_len=KV_LEN, dim=20, value_dim=24)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mask_of_every_shape(rng, shape):
    check_attention(*masked_inputs(rng), mask=np.asarray(rng.random(shape) < 0.6))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_of_every_shape(rng, shape):
    bias = np.asarray(rng.standard_normal(shape), np.float32)
    check_attention(*masked_inputs(rng), bias=bias)
    check_attention(*masked_inputs(rng), bias=np.where(rng.random(shape) < 0.3, np.float32(-np.inf), bias))


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize(
    ("mask_shape", "bias_shape"),
    [(FULL, FULL), ((KV_LEN,), (HEADS, 1, 1)), ((BATCH, 1, 1, KV_LEN), (Q_LEN, KV_LEN))],
)
@pytest.mark.parametrize("kv_lengths", [None, (KV_LEN, 5), (0, 1)])
def test_all_masks_hold_together(rng, causal, mask_shape, bias_shape, kv_lengths):
    check_attention(
        *masked_inputs(rng),
        mask=rng.random(mask_shape) < 0.7,
        bias=rng.standard_normal(bias_shape).astype(np.float32),
        causal=causal,
        kv_lengths=None if kv_lengths is None else np.array(kv_lengths),
    )


@pytest.mark.parametrize("causal", ["top_left", "bottom_right"])
@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 1), (1, 9), (9, 1), (5, 70), (70, 5), (64, 65), (65, 64), (200, 193)]
)
def test_causal_when_lengths_differ(rng, causal, q_len, kv_len):
    check_attention(*qkv(rng, batch=6, q_len=q_len, kv_len=kv_len), causal=causal)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 65, 193])
def test_causal_of_equal_lengths_has_one_meaning(rng, length):
    query, key, value = qkv(rng, q_len=length)
    expected = selfattn.attention(query, key, value, causal=True)
    for causal in ("top_left", "bottom_right"):
        assert_same_bits(selfattn.attention(query, key, value, causal=causal), expected)
    mask = np.tri(length, dtype=bool)
    assert_same_bits(selfattn.attention(query, key, value, mask=mask), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_kv_lengths(rng, dtype):
    query, key, value = qkv(rng, batch=5, q_len=12, kv_len=40)
    check_attention(query, key, value, kv_lengths=np.array([40, 0, 1, 17, 39], dtype))
    check_attention(query, key, value, kv_lengths=np.array([0, 0, 0, 0, 0], dtype))


def test_a_row_without_keys_is_zero_and_minus_infinity(rng):
    query, key, value = qkv(rng, q_len=21, kv_len=30)
    mask = rng.random((21, 30)) < 0.5
    mask[[0, 7, 20]] = False
    out, lse = selfattn.attention(query, key, value, mask=mask, return_lse=True)
    empty = ~mask.any(axis=-1)
    assert not out[:, :, empty].any()
    assert np.isneginf(lse[:, :, empty]).all()
    assert np.isfinite(lse[:, :, ~empty]).all()
    assert out[:, :, ~empty].all()


HIDDEN = slice(30, 40)  # the keys that each mask below hides
HIDING = {
    "mask": {"mask": np.arange(50) // 10 != 3},
    "mask per query": {"mask": np.broadcast_to(np.arange(50) // 10 != 3, (20, 50))},
    "bias": {"bias": np.where(np.arange(50) // 10 == 3, -np.inf, 0).astype(np.float32)},
    "kv_lengths": {"kv_lengths": np.array([30, 30])},
    "causal": {"causal": "top_left"},
    "mask and bias": {
        "mask": np.arange(50) // 10 != 3,
        "bias": np.zeros((20, 50), np.float32),
    },
}


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("hiding", HIDING)
def test_nothing_behind_a_mask_reaches_the_output(rng, hiding, poison):
    query, key, value = qkv(rng, q_len=20, kv_len=50)
    expected = selfattn.attention(query, key, value, **HIDING[hiding], return_lse=True)
    for poisoned in ((key,), (value,), (key, value)):
        for array in poisoned:
            array[:, :, HIDDEN] = poison
        actual = selfattn.attention(query, key, value, **HIDING[hiding], return_lse=True)
        for ours, clean in zip(actual, expected, strict=True):
            assert_same_bits(ours, clean)


def test_a_scattered_mask_hides_each_key_from_its_own_rows(rng):
    """Every query masks other keys: a poisoned one reaches the queries that attend, and only them."""
    query, key, value = qkv(rng, batch=1, heads=1, q_len=40, kv_len=67)
    mask = rng.random((40, 67)) < 0.5
    clean = selfattn.attention(query, key, value, mask=mask)
    for array in (key, value):
        for position in (0, 5, 31, 66):
            kept = array[0, 0, position].copy()
            array[0, 0, position] = np.nan
            out = selfattn.attention(query, key, value, mask=mask)
            array[0, 0, position] = kept
            attends = mask[:, position]
            assert np.isnan(out[0, 0, attends]).any(axis=-1).all()
            assert_same_bits(out[0, 0, ~attends], clean[0, 0, ~attends])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_nan_reaches_the_rows_that_depend_on_it_and_no_other(rng, argument, causal):
    """A single NaN at each position: which outputs become NaN is the definition of what they depend on."""
    length, dim, value_dim = 11, 5, 7
    arrays = qkv(rng, batch=2, heads=2, q_len=length, dim=dim, value_dim=value_dim)
    clean = selfattn.attention(*arrays, causal=causal)
    sees = np.tri(length, dtype=bool) if causal else np.ones((length, length), bool)
    for position in np.ndindex(arrays[argument].shape):
        batch, head, row, column = position
        depends = np.zeros(clean.shape, bool)
        if argument == 0:
            depends[batch, head, row] = True
        elif argument == 1:
            depends[batch, head, sees[:, row]] = True
        else:
            depends[batch, head, sees[:, row], column] = True
        kept = arrays[argument][position]
        arrays[argument][position] = np.nan
        out = selfattn.attention(*arrays, causal=causal)
        arrays[argument][position] = kept
        np.testing.assert_array_equal(np.isnan(out), depends)
        assert_same_bits(out[~depends], clean[~depends])


@pytest.mark.parametrize("size", [30.0, 1e3, 1e6, 1e18])
def test_huge_logits(rng, size):
    query, key, value = qkv(rng, q_len=33, kv_len=70)
    out = selfattn.attention(query * np.float32(size), key, value)
    assert np.isfinite(out).all()
    if size <= 30:
        check_attention(query * np.float32(size), key, value)
    if size >= 1e6:  # the largest logit takes all
        winner = (query.astype(np.float64) @ key.astype(np.float64).swapaxes(-1, -2)).argmax(axis=-1)
        np.testing.assert_allclose(out, np.take_along_axis(value, winner[..., None], axis=-2), rtol=1e-6)


def test_an_infinite_logit_makes_its_row_nan(rng):
    query, key, value = qkv(rng, q_len=20, kv_len=40)
    bias = np.zeros((20, 40), np.float32)
    bias[7, 31] = np.inf
    out = selfattn.attention(query, key, value, bias=bias)
    assert np.isnan(out[:, :, 7]).all()
    clean = selfattn.attention(query, key, value)
    rest = np.arange(20) != 7
    assert_same_bits(out[:, :, rest], clean[:, :, rest])


def test_the_most_negative_bias_is_a_number_and_not_a_mask(rng):
    """A row whose every bias is the lowest finite float is a softmax of equals, as in PyTorch; not empty."""
    query, key, value = qkv(rng, q_len=6, kv_len=40)
    bias = np.full((6, 40), np.finfo(np.float32).min)
    out = selfattn.attention(query, key, value, bias=bias)
    np.testing.assert_allclose(out, np.broadcast_to(value.mean(axis=-2, keepdims=True), out.shape), atol=1e-6)


def test_a_first_block_of_keys_that_is_wholly_masked(rng):
    """The running maximum starts at -inf and must not turn into NaN before the first real key."""
    query, key, value = qkv(rng, q_len=18, kv_len=700)
    mask = np.arange(700) >= 650
    check_attention(query, key, value, mask=mask)
    check_attention(query, key, value, bias=np.where(mask, 0, -np.inf).astype(np.float32))
