# SPDX-License-Identifier: Apache-2.0
"""NaN at each single position reaches the rows that depend on it, and no other; behind a mask, nothing."""

import itertools

import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.arrays import qkv
from support.forms import FORMS
from support.nan_positions import (
    BATCH,
    CASES,
    HEADS,
    KV_HEADS,
    KV_LEN,
    LENGTHS,
    MASK,
    OPTIONS,
    Q_LEN,
    visible,
)

import selfattn

pytestmark = pytest.mark.usefixtures("isa")


def dependent(argument, position, seen):
    """Which rows (batch, heads, q_len) the number at this position of an array plays a part in."""
    rows = np.zeros(seen.shape[:3], bool)
    if argument == "query":
        b, h, i, _ = position
        rows[b, h, i] = seen[b, h, i].any()
    elif argument == "bias":
        b, h, i, j = position
        rows[b, h, i] = seen[b, h, i, j]
    else:
        b, g, j, _ = position
        group = slice(g * HEADS // KV_HEADS, (g + 1) * HEADS // KV_HEADS)
        rows[b, group] = seen[b, group, :, j]
    return rows


def arrays_for(rng, dtype="float32"):
    names = ("query", "key", "value")
    arrays = qkv(
        rng, batch=BATCH, heads=HEADS, kv_heads=KV_HEADS, q_len=Q_LEN, kv_len=KV_LEN, dim=2, value_dim=3
    )
    return {name: array.astype(dtype) for name, array in zip(names, arrays, strict=True)}


def test_what_is_expected_is_more_than_nothing_and_less_than_all():
    for name, options in OPTIONS.items():
        seen = visible(**options)
        assert seen.any(axis=-1).any(), name
        assert not seen.all(), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("argument", ["query", "key", "value"])
def test_nan_reaches_the_rows_that_depend_on_it_and_no_other(rng, form, name, dtype, argument):
    arrays, options = arrays_for(rng, dtype), OPTIONS[name]
    call, seen = FORMS[form], visible(form, **options)
    clean, clean_lse = call(*arrays.values(), LENGTHS, **options)
    for position in np.ndindex(arrays[argument].shape):
        spoiled = {argument: arrays[argument].copy()}
        spoiled[argument][position] = np.nan
        out, lse = call(*(arrays | spoiled).values(), LENGTHS, **options)
        rows = dependent(argument, position, seen)
        hit = np.broadcast_to(rows[..., None], out.shape)
        if argument == "value":  # its own channel, and not the lse
            hit = hit & (np.arange(out.shape[-1]) == position[-1])
            rows = np.zeros_like(rows)
        np.testing.assert_array_equal(np.isnan(out), hit)
        np.testing.assert_array_equal(np.isnan(lse), rows)
        assert_same_bits(out[~hit], clean[~hit])
        assert_same_bits(lse[~rows], clean_lse[~rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["plain", "mask", "everything"])
def test_nan_in_a_bias_reaches_its_row_if_the_key_is_seen(rng, form, name):
    arrays, options = arrays_for(rng), OPTIONS[name]
    bias = np.broadcast_to(options.get("bias", np.float32(0)), MASK.shape)
    clean, clean_lse = FORMS[form](*arrays.values(), LENGTHS, **(options | {"bias": bias}))
    for position in np.ndindex(bias.shape):
        spoiled = bias.copy()
        spoiled[position] = np.nan
        seen = visible(form, **(options | {"bias": spoiled}))
        out, lse = FORMS[form](*arrays.values(), LENGTHS, **(options | {"bias": spoiled}))
        rows = dependent("bias", position, seen)
        np.testing.assert_array_equal(np.isnan(lse), rows)
        np.testing.assert_array_equal(np.isnan(out).any(axis=-1), rows)
        if np.isfinite(bias[position]):  # where it was -inf, the row sees one key more than before
            assert_same_bits(out[~rows], clean[~rows])
            assert_same_bits(lse[~rows], clean_lse[~rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", [name for name in OPTIONS if name not in ("plain", "softcap", "sinks", "scale 0")]
)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_what_a_row_does_not_see_does_not_reach_it(rng, form, name, poison):
    """For each query in turn, every key and value that no head of its group sees is poisoned."""
    arrays, options = arrays_for(rng), OPTIONS[name]
    clean, clean_lse = FORMS[form](*arrays.values(), LENGTHS, **options)
    seen = visible(form, **options).reshape(BATCH, KV_HEADS, HEADS // KV_HEADS, Q_LEN, KV_LEN)
    for row in range(Q_LEN):
        hidden = ~seen[:, :, :, row].any(axis=2)  # (batch, kv_heads, kv_len)
        assert hidden.any()
        poisoned = [
            np.where(hidden[..., None], np.float32(poison), arrays[name]) for name in ("key", "value")
        ]
        out, lse = FORMS[form](arrays["query"], *poisoned, LENGTHS, **options)
        assert_same_bits(out[:, :, row], clean[:, :, row])
        assert_same_bits(lse[:, :, row], clean_lse[:, :, row])


@pytest.mark.parametrize("name", OPTIONS)
def test_nan_in_the_weights(rng, name):
    """A query or key of NaN makes the row's weights NaN, but at the keys it does not see: those stay 0."""
    arrays, options = arrays_for(rng), OPTIONS[name] | {"kv_lengths": LENGTHS}
    query, key = arrays["query"], arrays["key"]
    seen = visible(**OPTIONS[name])
    clean = selfattn.attention_weights(query, key, **options)
    for argument, array in (("query", query), ("key", key)):
        for position in itertools.product(*map(range, array.shape[:3]), [0]):
            kept, array[position] = array[position], np.nan
            weights = selfattn.attention_weights(query, key, **options)
            sums = selfattn.attention_column_sums(query, key, **options)
            array[position] = kept
            rows = dependent(argument, position, seen)
            hit = rows[..., None] & seen
            np.testing.assert_array_equal(np.isnan(weights), hit)
            np.testing.assert_array_equal(np.isnan(sums), hit.any(axis=2))
            assert not weights[~seen].any()
            assert_same_bits(weights[~rows], clean[~rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("argument", ["key", "value"])
def test_nan_at_the_borders_of_blocks_of_keys(rng, form, argument):
    """As above, where the keys are many blocks and the rows many vectors."""
    q_len, kv_len = 70, 410
    arrays = dict(
        zip(("query", "key", "value"), qkv(rng, batch=1, q_len=q_len, kv_len=kv_len, dim=8), strict=True)
    )
    options = {"mask": rng.random((q_len, kv_len)) < 0.6, "causal": "bottom_right", "window": (150, 0)}
    distance = np.arange(kv_len) - np.arange(kv_len - q_len, kv_len)[:, None]
    seen = options["mask"] & (distance <= 0) & (distance >= -150)
    lengths = np.array([kv_len])
    clean = FORMS[form](*arrays.values(), lengths, **options)[0]
    for key in (0, 189, 191, 192, 193, 240, 340, 383, 384, 400, 409):
        spoiled = arrays[argument].copy()
        spoiled[0, 1, key] = np.nan
        out = FORMS[form](*(arrays | {argument: spoiled}).values(), lengths, **options)[0]
        hit = np.zeros(out.shape, bool)
        hit[0, 1, seen[:, key]] = True
        np.testing.assert_array_equal(np.isnan(out), hit)
        assert_same_bits(out[~hit], clean[~hit])
