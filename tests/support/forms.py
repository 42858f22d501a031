# SPDX-License-Identifier: Apache-2.0
"""One ragged batch in every form of the operator: each takes the padded arrays and gives back padded results.

query (batch, num_heads, q_len, head_dim), key and value (batch, num_kv_heads, kv_len, dim), lengths (batch,):
the real keys of each item; mask and bias broadcast to (batch, num_heads, q_len, kv_len). What no form may
read holds NaN: the padding, the pages and slots in between, and what a cache held before.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.pages import in_pages

import selfattn

Result = tuple[NDArray, NDArray]  # out (batch, num_heads, q_len, value_dim), lse (batch, num_heads, q_len)
Form = Callable[..., Result]


def padded(query: NDArray, key: NDArray, value: NDArray, lengths: NDArray, **options: Any) -> Result:
    key, value = _padded_with_nan(lengths, key, value)
    return selfattn.attention(query, key, value, kv_lengths=lengths, return_lse=True, **options)


def packed(query: NDArray, key: NDArray, value: NDArray, lengths: NDArray, **options: Any) -> Result:
    batch, num_heads, q_len, _ = query.shape
    for name, array in _cut_masks(options, (*query.shape[:3], key.shape[2]), lengths).items():
        options[name] = array.swapaxes(0, 1).reshape(num_heads, batch * q_len, array.shape[-1])
    out, lse = selfattn.varlen_attention(
        query.swapaxes(1, 2).reshape(batch * q_len, num_heads, query.shape[3]),
        *(
            _join([array[b, :, :n].swapaxes(0, 1) for b, n in enumerate(lengths)], array)
            for array in (key, value)
        ),
        np.arange(batch + 1) * q_len,
        np.append(0, np.cumsum(lengths)),
        return_lse=True,
        **options,
    )
    return (
        out.reshape(batch, q_len, num_heads, value.shape[3]).swapaxes(1, 2),
        lse.reshape(num_heads, batch, q_len).swapaxes(0, 1),
    )


def cached(query: NDArray, key: NDArray, value: NDArray, lengths: NDArray, **options: Any) -> Result:
    """The keys come in three helpings, of other sizes for each item."""
    batch, num_kv_heads, kv_len, head_dim = key.shape
    sizes = {"value_dim": value.shape[-1], "capacity": max(kv_len, 1), "dtype": key.dtype}
    cache = selfattn.KVCache(batch, num_kv_heads, head_dim, **sizes)
    cache.append(np.full_like(key, np.nan), np.full_like(value, np.nan))
    cache.clear()
    stored = np.zeros_like(lengths)
    for upto in (lengths // 3, lengths // 2, lengths):
        helping = [np.full_like(array, np.nan) for array in (key, value)]
        for (new, whole), b in itertools.product(zip(helping, (key, value), strict=True), range(batch)):
            new[b, :, : upto[b] - stored[b]] = whole[b, :, stored[b] : upto[b]]
        cache.append(*helping, upto - stored)
        stored = upto
    options = {"causal": False} | options | _cut_masks(options, (*query.shape[:3], kv_len), lengths)
    return cache.attention(query, return_lse=True, **options)


def paged(
    query: NDArray, key: NDArray, value: NDArray, lengths: NDArray, *, page_size: int = 3, **options: Any
) -> Result:
    key, value = _padded_with_nan(lengths, key, value)
    key_pages, value_pages, tables = in_pages(key, value, page_size, np.random.default_rng(len(lengths)))
    for b, length in enumerate(lengths):
        tables[b, -(-length // page_size) :] = -1  # no page: never looked at
    options |= _cut_masks(options, (*query.shape[:3], key.shape[2]), lengths)
    return selfattn.paged_attention(
        query, key_pages, value_pages, tables, lengths, return_lse=True, **options
    )


FORMS: dict[str, Form] = {"padded": padded, "packed": packed, "cached": cached, "paged": paged}


def _padded_with_nan(lengths: NDArray, *arrays: NDArray) -> list[NDArray]:
    real = np.arange(arrays[0].shape[2]) < lengths[:, None]  # (batch, kv_len)
    return [np.where(real[:, None, :, None], array, array.dtype.type(np.nan)) for array in arrays]


def _cut_masks(options: dict[str, Any], scores: tuple[int, ...], lengths: NDArray) -> dict[str, NDArray]:
    """mask and bias, if given, at their full size and only as wide as the longest item is."""
    given = [name for name in ("mask", "bias") if options.get(name) is not None]
    longest = max(lengths, default=0)
    return {name: np.broadcast_to(options[name], scores)[..., :longest] for name in given}


def _join(parts: list[NDArray], like: NDArray) -> NDArray:
    """(total, heads, dim) out of (length, heads, dim)s, of which there may be none."""
    return np.concatenate([np.zeros((0, like.shape[1], like.shape[3]), like.dtype), *parts])
