# SPDX-License-Identifier: Apache-2.0
"""NaN at each single position reaches the gradients that depend on it, no other; behind a mask, nothing."""

import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.arrays import qkv
from support.attention_gradients import EVERY, QKV, backward, needed
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

GROUP = HEADS // KV_HEADS
ARGUMENTS = ("grad_out", *QKV)

pytestmark = pytest.mark.usefixtures("isa")


def arrays_for(rng, dtype="float32"):
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS, "q_len": Q_LEN, "kv_len": KV_LEN, "dim": 2, "value_dim": 3}
    query, key, value = qkv(rng, batch=BATCH, **sizes)
    grad_out = rng.standard_normal((BATCH, HEADS, Q_LEN, 3))
    return {n: x.astype(dtype) for n, x in zip(ARGUMENTS, (grad_out, query, key, value), strict=True)}


def gradients(arrays, name, **more):
    options = OPTIONS[name] | {"kv_lengths": LENGTHS} | more
    return backward(*arrays.values(), **options)


def expected_nan(argument, position, seen):
    """For each gradient, which of its numbers depend on the number at this position, seen or not seen."""
    b, h, i, c = position
    rows = np.zeros(seen.shape[:3], bool)  # whose weights or output depend on it
    if argument in ("query", "grad_out"):
        rows[b, h, i] = seen[b, h, i].any()
    else:
        group = slice(h * GROUP, (h + 1) * GROUP)
        rows[b, group] = seen[b, group, :, i]
    keys = (rows[..., None] & seen).reshape(BATCH, KV_HEADS, GROUP * Q_LEN, KV_LEN).any(axis=2)
    spoiled = {
        "query": np.broadcast_to(rows[..., None], (*rows.shape, 2)),
        "key": np.broadcast_to(keys[..., None], (*keys.shape, 2)),
        "value": np.broadcast_to(keys[..., None], (*keys.shape, 3)),
    }
    if argument == "grad_out":
        spoiled["value"] = spoiled["value"] & (np.arange(3) == c)
    if argument == "value":  # no weight depends on a value
        spoiled["value"] = np.zeros_like(spoiled["value"])
    return spoiled


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_nan_reaches_what_depends_on_it_and_nothing_else(rng, name, dtype, argument):
    arrays, seen = arrays_for(rng, dtype), visible(**OPTIONS[name])
    clean = gradients(arrays, name)
    for position in np.ndindex(arrays[argument].shape):
        spoiled = {argument: arrays[argument].copy()}
        spoiled[argument][position] = np.nan
        grads = gradients(arrays | spoiled, name)
        for of, hit in expected_nan(argument, position, seen).items():
            np.testing.assert_array_equal(np.isnan(grads[of].astype(np.float32)), hit, f"{of} {position}")
            assert_same_bits(grads[of][~hit], clean[of][~hit])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_what_no_query_sees_reaches_nothing(rng, name, poison):
    arrays, options, seen = arrays_for(rng), OPTIONS[name], visible(**OPTIONS[name])
    clean = gradients(arrays, name)
    unseen_keys = ~seen.reshape(BATCH, KV_HEADS, GROUP * Q_LEN, KV_LEN).any(axis=2)
    unseeing_rows = ~seen.any(axis=-1)
    arrays["key"][unseen_keys] = arrays["value"][unseen_keys] = poison
    arrays["query"][unseeing_rows] = arrays["grad_out"][unseeing_rows] = poison
    more = {}
    if "bias" in options:
        more = {"bias": np.where(np.isfinite(options["bias"]) & ~seen, np.float32(poison), options["bias"])}
    assert unseen_keys.any()
    for of, grad in gradients(arrays, name, **more).items():
        assert_same_bits(grad, clean[of])


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_what_a_row_does_not_see_does_not_reach_it(rng, poison):
    """Everything that one query does not see is poisoned: its own gradient stays as it was."""
    arrays, seen = arrays_for(rng), visible(**OPTIONS["everything"])
    clean = gradients(arrays, "everything")
    for b, h, i in np.ndindex(seen.shape[:3]):
        spoiled = {name: arrays[name].copy() for name in ("key", "value")}
        for array in spoiled.values():
            array[b, h // GROUP, ~seen[b, h, i]] = poison
        grads = gradients(arrays | spoiled, "everything")
        assert_same_bits(grads["query"][b, h, i], clean["query"][b, h, i])
        assert_same_bits(grads["bias"][b, h, i], clean["bias"][b, h, i])


def test_nan_in_a_bias(rng):
    arrays = arrays_for(rng)
    bias = np.where(MASK, np.float32(0.5), np.float32(-np.inf))
    clean = gradients(arrays, "plain", bias=bias)
    seen = visible(bias=bias)
    for position in np.argwhere(MASK):
        b, h, i, j = position
        spoiled = bias.copy()
        spoiled[b, h, i, j] = np.nan
        grads = gradients(arrays, "plain", bias=spoiled)
        hit = np.zeros_like(seen)
        hit[b, h, i] = seen[b, h, i] & seen[b, h, i, j]
        np.testing.assert_array_equal(np.isnan(grads["bias"]), hit)
        np.testing.assert_array_equal(np.isnan(grads["query"]).any(axis=-1), hit.any(axis=-1))
        assert_same_bits(grads["bias"][~hit], clean["bias"][~hit])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_overflows_is_infinite_and_nothing_warns(rng, dtype):
    arrays = arrays_for(rng, dtype)
    arrays["grad_out"] *= np.finfo(dtype).max / 8
    infinite = arrays | {"value": arrays["value"] * 64}
    infinite["query"] = infinite["query"][:1]  # summed over the items
    assert not np.isfinite(gradients(infinite, "everything")["query"].astype(np.float64)).all()
    assert dtype == "float16" or not np.isfinite(gradients(infinite, "everything")["sinks"]).all()


def test_nan_reaches_the_numbers_of_its_own_head_alone(rng):
    arrays = arrays_for(rng)
    arrays["query"][1, 2, 4, 0] = np.nan
    grads = gradients(arrays, "everything")
    assert needed(OPTIONS["everything"]) == EVERY
    for of in ("sinks", "alibi_slopes"):
        np.testing.assert_array_equal(np.isnan(grads[of]), [False, False, True, False])
