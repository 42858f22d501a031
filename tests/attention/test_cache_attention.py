# SPDX-License-Identifier: Apache-2.0
"""Attention to a KVCache: bit for bit that to the whole arrays, however the cache was filled."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import qkv
from support.caches import filled, small, tokens, whole_arrays

import selfattn
from selfattn import KVCache

OPTIONS = {
    "default": {},
    "all": {"causal": False},
    "top_left": {"causal": "top_left"},
    "window": {"window": (40, None)},
    "alibi": {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625], "window": (100, 0)},
    "softcap": {"softcap": 1.5, "scale": 0.3, "sinks": [0.0, 1.0, -1.0, 2.0]},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_attention_to_the_cache_is_attention_to_its_arrays(isa, rng, dtype, name):
    lengths = [301, 1, 144, 0]
    cache = filled(rng, dtype, lengths)
    query = rng.standard_normal((4, 4, 3, 24)).astype(np.float32 if dtype == np.int8 else dtype)
    options = {"causal": "bottom_right"} | OPTIONS[name] | {"return_lse": True}
    ours = cache.attention(query, **OPTIONS[name], return_lse=True)
    theirs = selfattn.attention(query, *whole_arrays(cache), kv_lengths=lengths, **options)
    for actual, expected in zip(ours, theirs, strict=True):
        assert not np.isnan(actual.astype(np.float32)).any()
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_each_sequence_as_if_it_were_alone(isa, rng, dtype):
    lengths = [301, 1, 144, 37]
    cache = filled(rng, dtype, lengths)
    query = rng.standard_normal((4, 4, 3, 24)).astype(np.float32 if dtype == np.int8 else dtype)
    together = cache.attention(query, window=(200, None))
    for b, length in enumerate(lengths):
        key, value = (array[b, :, :length] for array in whole_arrays(cache))
        alone = selfattn.attention(query[b], key, value, causal="bottom_right", window=(200, None))
        assert_same_bits(together[b], alone)


@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_decoding_gives_the_rows_of_the_prompt(isa, rng, dtype):
    """Prompt, chunk or token by token: the same bits, with a cache or without one."""
    length = 160
    query, key, value = qkv(rng, heads=4, kv_heads=2, q_len=length, dim=24, value_dim=17)
    if dtype != np.int8:
        query = query.astype(dtype)
    prompt, cache = (KVCache(2, 2, 24, value_dim=17, capacity=length, dtype=dtype) for _ in range(2))
    prompt.append(key, value)
    expected = selfattn.attention(query, *whole_arrays(prompt), causal=True)
    assert_same_bits(prompt.attention(query), expected)
    for first, last in itertools.pairwise([0, 1, 2, 100, 101, *range(140, 149), length]):
        cache.append(key[:, :, first:last], value[:, :, first:last])
        assert_same_bits(cache.attention(query[:, :, first:last]), expected[:, :, first:last])


def test_half_precision_caches_attend_as_widened_arrays_do(isa, rng):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        cache = filled(rng, dtype, [200, 50])
        query = rng.standard_normal((2, 4, 3, 24)).astype(dtype)
        wide = [array.astype(np.float32) for array in (query, cache.key, cache.value)]
        out = selfattn.attention(*wide, causal="bottom_right", kv_lengths=[200, 50])
        assert_same_bits(cache.attention(query), out.astype(dtype))


def test_mask_and_bias_have_a_column_for_each_stored_token(rng):
    cache = filled(rng, np.float32, [40, 25])
    query = rng.standard_normal((2, 4, 3, 24)).astype(np.float32)
    mask, bias = rng.random((2, 1, 3, 40)) < 0.7, rng.standard_normal((4, 1, 40)).astype(np.float32)
    expected = selfattn.attention(
        query, cache.key, cache.value, mask=mask, bias=bias, kv_lengths=[40, 25], causal="bottom_right"
    )
    assert_same_bits(cache.attention(query, mask=mask, bias=bias), expected)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 333\).*\(2, 4, 3, 40\)"):
        cache.attention(query, mask=np.ones((3, 333), bool))


def test_out_is_written_and_returned(rng):
    cache = filled(rng, np.float32, [40, 25], value_dim=24)
    query = rng.standard_normal((2, 4, 3, 24)).astype(np.float32)
    expected = cache.attention(query)
    assert cache.attention(query, out=query) is query
    assert_same_bits(query, expected)


@pytest.mark.parametrize(
    ("dtype", "query", "error", "message"),
    [
        (np.float32, np.ones((2, 4, 3, 8)), TypeError, "query has dtype float64; .* must be float32"),
        (
            np.float16,
            np.ones((2, 4, 3, 8), np.float32),
            TypeError,
            "float32; with a cache of float16 it must be float16",
        ),
        (np.int8, np.ones((2, 4, 3, 8), np.int8), TypeError, "int8; with a cache of int8 it must be float32"),
        (
            np.int8,
            np.ones((2, 4, 3, 8), np.float16),
            TypeError,
            "float16; with a cache of int8 it must be float32",
        ),
        (np.float32, np.ones((4, 3, 8), np.float32), ValueError, r"query has shape \(4, 3, 8\)"),
        (np.float32, np.ones((1, 4, 3, 8), np.float32), ValueError, r"query has shape .*\(2, num_heads"),
        (np.float32, np.ones((2, 4, 3, 9), np.float32), ValueError, "head_dim=9 and key has head_dim=8"),
        (np.float32, np.ones((2, 3, 3, 8), np.float32), ValueError, "num_heads=3 is not a multiple"),
    ],
)
def test_queries_that_do_not_fit(rng, dtype, query, error, message):
    cache = small(dtype)
    cache.append(*tokens(rng, 4))
    with pytest.raises(error, match=message):
        cache.attention(query)
