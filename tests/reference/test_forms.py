# SPDX-License-Identifier: Apache-2.0
"""The specification over keys that lie otherwise: packed and paged, held against one sequence at a time."""

import itertools

import numpy as np
import pytest
from support.pages import in_pages
from support.spec_arrays import arrays, qkv

from selfattn.reference import attention, paged_attention, varlen_attention

OPTIONS = {
    "plain": {},
    "bottom_right": {"causal": "bottom_right"},
    "top_left": {"causal": "top_left", "window": (1, 2)},
    "window": {"window": (2, 1), "alibi_slopes": np.array([1.0, 0.5, 0.25, 0.125])},
    "softcap": {"softcap": 0.7, "scale": 0.4, "sinks": np.array([0.1, -2.0, 1.0, 0.0])},
}
CU_Q, CU_KV = [0, 3, 3, 4, 9], [0, 5, 7, 7, 11]  # a sequence without queries, one without keys


def assert_close(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_sequences_do_not_see_each_other(name):
    query, key, value = arrays((9, 4, 8), (11, 2, 8), (11, 2, 3))
    options = {**OPTIONS[name], "return_lse": True}
    out, lse = varlen_attention(query, key, value, CU_Q, CU_KV, **options)
    for (a, b), (c, d) in zip(itertools.pairwise(CU_Q), itertools.pairwise(CU_KV), strict=True):
        alone = (query[a:b].swapaxes(0, 1), key[c:d].swapaxes(0, 1), value[c:d].swapaxes(0, 1))
        assert_close((out[a:b].swapaxes(0, 1), lse[:, a:b]), attention(*alone, **options))


def test_columns_of_a_packed_mask_are_the_keys_of_the_rows_own_sequence():
    query, key, value = arrays((9, 4, 8), (11, 2, 8), (11, 2, 3))
    mask = np.random.default_rng(6).random((9, 5)) < 0.6
    (bias,) = arrays((4, 1, 5), seed=7)
    out = varlen_attention(query, key, value, CU_Q, CU_KV, mask=mask, bias=bias)
    expected = attention(
        *(a.swapaxes(0, 1) for a in (query[4:], key[7:], value[7:])), mask=mask[4:, :4], bias=bias[:, :, :4]
    )
    np.testing.assert_allclose(out[4:].swapaxes(0, 1), expected, rtol=1e-12)


def test_packed_lengths_cut_each_sequence():
    query, key, value = arrays((9, 4, 8), (11, 2, 8), (11, 2, 3))
    given = {"causal": "bottom_right", "return_lse": True}
    out, lse = varlen_attention(query, key, value, CU_Q, CU_KV, kv_lengths=[5, 2, 0, 2], **given)
    cut = attention(*(a.swapaxes(0, 1) for a in (query[4:], key[7:9], value[7:9])), **given)
    assert_close((out[4:].swapaxes(0, 1), lse[:, 4:]), cut)


def test_self_attention_is_causal_in_each_sequence():
    query, key, value = arrays((6, 2, 4), (6, 2, 4), (6, 2, 3))
    out = varlen_attention(query, key, value, [0, 2, 6], causal=True)
    np.testing.assert_allclose(out[[0, 2]], value[[0, 2]], rtol=1e-14)
    with pytest.raises(ValueError, match="q_len=2 and kv_len=1"):
        varlen_attention(query, key, value, [0, 2, 6], [0, 1, 6], causal=True)


def test_a_packed_batch_of_nothing():
    query, key, value = arrays((0, 4, 8), (0, 2, 8), (0, 2, 3))
    for cu_seqlens in ([0], [0, 0, 0]):
        out, lse = varlen_attention(query, key, value, cu_seqlens, return_lse=True)
        assert (out.shape, lse.shape) == ((0, 4, 3), (4, 0))


# ---- pages ----


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 10])
def test_pages_of_any_size_hold_the_same_keys(page_size, name, rng):
    query, key, value = qkv(batch=3)
    lengths, options = np.array([7, 0, 4]), {**OPTIONS[name], "return_lse": True}
    *pages, tables = in_pages(key, value, page_size, rng)
    for b, length in enumerate(lengths):
        tables[b, -(-length // page_size) :] = -1  # never looked at
    out, lse = paged_attention(query, *pages, tables, lengths, **options)
    for b, length in enumerate(lengths):
        alone = attention(query[b], key[b, :, :length], value[b, :, :length], **options)
        assert_close((out[b], lse[b]), alone)


def test_mask_and_bias_of_pages_have_a_column_for_each_key(rng):
    query, key, value = qkv()
    mask = rng.random((2, 1, 5, 6)) < 0.6
    (bias,) = arrays((4, 1, 6), seed=8)
    *pages, tables = in_pages(key, value, 2, rng)
    out = paged_attention(query, *pages, tables, [6, 3], mask=mask, bias=bias)
    expected = attention(query[1], key[1, :, :3], value[1, :, :3], mask=mask[1, :, :, :3], bias=bias[..., :3])
    np.testing.assert_allclose(out[1], expected, rtol=1e-12)


def test_items_may_share_pages():
    query, key, value = qkv(batch=1, kv_len=4)
    pages = [
        a[0].reshape(2, 2, 2, -1).swapaxes(0, 1) for a in (key, value)
    ]  # (2 pages, 2 heads, 2 keys, dim)
    out = paged_attention(query.repeat(2, axis=0), *pages, [[0, 1], [0, 1]], [4, 4])
    expected = attention(query[0], key[0], value[0])
    np.testing.assert_allclose(out, [expected, expected], rtol=1e-13)
