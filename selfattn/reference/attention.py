# SPDX-License-Identifier: Apache-2.0
"""The specification of attention, in plain NumPy: of whole arrays, of packed sequences, of pages.

Sizes: `...` leading dimensions, H query heads, G key/value heads, Q queries, K keys, D head_dim.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from selfattn.attention.arrays import Array
from selfattn.attention.options import Causal
from selfattn.reference.dropout import dropout_factors

# ---- the operator ----


def attention(
    query: Array,  # (..., H, Q, D)
    key: Array,  # (..., G, K, D), H a multiple of G: query head h reads key head h // (H / G)
    value: Array,  # (..., G, K, value_dim)
    *,
    sinks: Array | None = None,  # (H,) a logit that counts in the denominator only
    dropout: float = 0.0,  # the share of weights that do not reach the output; dropout_factors says which
    seed: int | None = None,
    first_item: int = 0,
    return_lse: bool = False,
    **masking: Any,  # as in masked_scores
) -> Any:
    """softmax(masked scores) * value, (..., H, Q, value_dim); with return_lse also the lse, (..., H, Q).

    A row with no key gives 0 and lse -inf (with sinks too). lse is natural, includes the sink and knows no
    dropout. NaN in a masked key or value reaches nothing; in an attended one, the rows that attend to it and
    no other.
    """
    query, key, value = _one_dtype(query, key, value)
    leading = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    query = np.broadcast_to(query, leading + query.shape[-3:])
    scores = masked_scores(query, key, **masking)  # (..., H, Q, K)
    weights, lse = _softmax(scores, sinks)
    if dropout:
        weights = weights * dropout_factors(weights.shape, dropout, seed, weights.dtype, first_item)
    out = _weighted_sum(weights, _expand_heads(value, query.shape[-3]), scores != -np.inf)
    return (out, lse) if return_lse else out


def attention_weights(
    query: Array, key: Array, *, sinks: Array | None = None, rows: Any = None, **masking: Any
) -> Array:
    """How much each query attends to each key, (..., H, Q, K); `rows` keeps the queries of those indices."""
    query, key = _one_dtype(query, key)
    weights, _ = _softmax(masked_scores(query, key, **masking), sinks)
    return weights if rows is None else weights[..., np.asarray(rows, dtype=np.intp), :]


def attention_column_sums(query: Array, key: Array, **masking: Any) -> Array:
    """How much each key is attended to in all, (..., H, K): the sum of attention_weights over the queries."""
    sums: Array = attention_weights(query, key, **masking).sum(axis=-2)
    return sums


def masked_scores(
    query: Array,
    key: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    window: tuple[int | None, int | None] | None = None,
    kv_lengths: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    relative_bias: Array | None = None,
) -> Array:
    """What goes into the softmax, (..., H, Q, K); -inf is a masked key, whatever made it.

    mask          bool, broadcasts to (..., H, Q, K); True attends. All masks hold (AND).
    bias          float, broadcasts likewise, added; -inf masks like mask=False.
    causal        a query sees the keys up to its own position; True needs Q == K.
    window        (left, right): it sees position - left to position + right, ends included; None is open.
    kv_lengths    (batch,) or (): item b has keys 0 .. kv_lengths[b] - 1; batch is the first leading axis.
    scale         any finite number, by default 1/sqrt(D).
    softcap       c > 0 makes a score c * tanh(score / c).
    alibi_slopes  (H,): subtracts slope * |distance to the query's position|.
    relative_bias (H, 2 * reach + 1): adds column reach + distance, the distance cut off at -reach and reach.

    The position of query i among the keys is i + (K - Q): the last query stands at the last of the K keys.
    With causal="bottom_right" and kv_lengths it is i + (kv_lengths[b] - Q): at the last of the item's keys.
    With causal="top_left" it is i, whatever the lengths.
    """
    num_heads, q_len, head_dim = query.shape[-3:]
    kv_len = key.shape[-2]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite")
    if mask is not None and np.asarray(mask).dtype != np.bool_:
        raise TypeError(f"mask must be bool (True attends), not {np.asarray(mask).dtype}; add floats as bias")
    lengths = None if kv_lengths is None else np.asarray(kv_lengths)
    if lengths is not None:  # (batch,) -> (batch, 1, ..., 1), one axis for each axis of the scores
        ndim = max(query.ndim, key.ndim)
        lengths = lengths.reshape(lengths.shape + (1,) * (ndim - lengths.ndim))
    distance = _key_distance(q_len, kv_len, causal, lengths)  # (Q, K) or (batch, 1, ..., Q, K)

    with np.errstate(invalid="ignore", over="ignore"):
        # 1. scores
        scores = query @ _expand_heads(key, num_heads).swapaxes(-1, -2)  # (..., H, Q, K)
        scores = scores * scores.dtype.type(scale)
        # 2. softcap
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        # 3. alibi
        if alibi_slopes is not None:
            slopes = np.asarray(alibi_slopes, dtype=scores.dtype).reshape(num_heads, 1, 1)
            scores = scores - slopes * np.abs(distance).astype(scores.dtype)
        # 4. bias: of the distance; of the pair
        if relative_bias is not None:
            table = np.asarray(relative_bias, dtype=scores.dtype)  # (H, 2 * reach + 1)
            scores = scores + relative_scores(table, distance)
        if bias is not None:
            bias = np.broadcast_to(np.asarray(bias, dtype=scores.dtype), scores.shape)
            scores = np.where(bias == -np.inf, bias, scores + bias)

    # 5. masks
    attend = np.ones((q_len, kv_len), dtype=np.bool_)
    if mask is not None:
        attend = attend & np.broadcast_to(mask, scores.shape)
    if causal:
        attend = attend & (distance <= 0)
    if window is not None:
        left, right = window
        attend = attend & (left is None or distance >= -left) & (right is None or distance <= right)
    if lengths is not None:
        attend = attend & (np.arange(kv_len) < lengths)
    return np.where(attend, scores, scores.dtype.type(-np.inf))


def relative_scores(table: Array, distance: Array) -> Array:
    """table (H, 2 * reach + 1) by distance (..., Q, K) or (batch, 1, ..., Q, K) -> (..., H, Q, K)."""
    reach = table.shape[1] // 2
    column = np.clip(distance, -reach, reach) + reach
    if distance.ndim == 2:
        return table[:, column]  # (H, Q, K)
    of_item = table[:, column[..., 0, :, :]]  # (H, batch, 1, ..., Q, K)
    return np.moveaxis(of_item, 0, -3)


def _key_distance(q_len: int, kv_len: int, causal: Causal, lengths: Array | None) -> Array:
    """How far key j lies beyond the position of query i, (..., Q, K); negative for the keys before it."""
    if causal is True and q_len != kv_len:
        choice = 'say causal="top_left" or causal="bottom_right"'
        raise ValueError(f"causal=True with q_len={q_len} and kv_len={kv_len} is ambiguous: {choice}")
    if causal not in (False, True, "top_left", "bottom_right"):
        raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')
    if causal == "bottom_right" and lengths is not None:
        first = lengths - q_len  # (batch, 1, ..., 1)
    else:
        first = np.array(0 if causal == "top_left" else kv_len - q_len)
    return np.arange(kv_len) - (first + np.arange(q_len)[:, None])


def _softmax(scores: Array, sinks: Array | None) -> tuple[Array, Array]:
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)  # (..., H, Q, 1)
    empty = top == -np.inf
    # 6. sinks
    sink = np.full((1, 1), -np.inf) if sinks is None else np.asarray(sinks).reshape(-1, 1, 1)  # (H, 1, 1)
    sink = sink.astype(scores.dtype)
    # 7. softmax
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        top = np.where(empty, 0, np.maximum(top, sink))
        exponentials = np.exp(scores - top)
        total = exponentials.sum(axis=-1, keepdims=True) + np.exp(sink - top)
        weights = np.where(empty | (scores == -np.inf), 0, exponentials / total)
        lse = np.where(empty, -np.inf, top + np.log(total))[..., 0]
    return weights.astype(scores.dtype), lse.astype(scores.dtype)


def _weighted_sum(weights: Array, value: Array, attend: Array) -> Array:
    # 8. values. 0 * NaN is NaN, so a masked value must not even be multiplied: the finite part of every value
    # goes through one product; a NaN or Inf is then added to the rows that attend to it and to no other.
    finite = np.isfinite(value)
    clean = np.where(finite, value, 0)  # (..., H, K, value_dim)
    with np.errstate(invalid="ignore"):
        out = weights @ clean  # (..., H, Q, value_dim)
        spoil = value - clean  # NaN, Inf or 0
        spoiled_keys = ~finite.all(axis=(*range(value.ndim - 2), value.ndim - 1))  # (K,)
        for j in np.flatnonzero(spoiled_keys):
            share = weights[..., j, None] * spoil[..., None, j, :]
            out = out + np.where(attend[..., j, None], share, 0)
    return out


def _one_dtype(*arrays: Array) -> list[Array]:
    dtype = np.result_type(*arrays, np.float32)
    return [np.asarray(array, dtype=dtype) for array in arrays]


def _expand_heads(array: Array, num_heads: int) -> Array:
    """(..., G, K, D) -> (..., H, K, D), each key/value head repeated for its group of query heads."""
    num_kv_heads = array.shape[-3]
    if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}")
    return np.repeat(array, num_heads // num_kv_heads, axis=-3)


# ---- the same attention over keys that lie otherwise ----


def varlen_attention(
    query: Array,  # (total_q, H, D): the sequences of a batch one after the other
    key: Array,  # (total_kv, G, D)
    value: Array,  # (total_kv, G, value_dim)
    cu_seqlens_q: Any,  # (n + 1,): sequence s has the queries cu_seqlens_q[s] .. cu_seqlens_q[s + 1] - 1
    cu_seqlens_kv: Any = None,  # (n + 1,), by default the same
    *,
    mask: Array
    | None = None,  # broadcast to (H, total_q, longest K): column j is key j of the row's sequence
    bias: Array | None = None,
    kv_lengths: Any = None,  # (n,)
    return_lse: bool = False,
    **options: Any,  # as in attention
) -> Any:
    """Attention inside each sequence, (total_q, H, value_dim); with return_lse also the lse, (H, total_q)."""
    query, key, value = _one_dtype(query, key, value)
    (total_q, num_heads, _), value_dim = query.shape, value.shape[-1]
    cu_seqlens_kv = cu_seqlens_q if cu_seqlens_kv is None else cu_seqlens_kv
    longest = max(np.diff(cu_seqlens_kv), default=0)
    out, lse = (
        np.empty((total_q, num_heads, value_dim), query.dtype),
        np.empty((num_heads, total_q), query.dtype),
    )
    for s, (first, last) in enumerate(itertools.pairwise(cu_seqlens_q)):
        rows, keys = slice(first, last), slice(cu_seqlens_kv[s], cu_seqlens_kv[s + 1])
        result, lse[:, rows] = attention(
            *(
                array.swapaxes(0, 1) for array in (query[rows], key[keys], value[keys])
            ),  # (heads, length, dim)
            mask=_cut(mask, (num_heads, total_q, longest), np.s_[:, rows, : keys.stop - keys.start]),
            bias=_cut(bias, (num_heads, total_q, longest), np.s_[:, rows, : keys.stop - keys.start]),
            kv_lengths=None if kv_lengths is None else kv_lengths[s],
            first_item=s,
            return_lse=True,
            **options,
        )
        out[rows] = result.swapaxes(0, 1)
    return (out, lse) if return_lse else out


def paged_attention(
    query: Array,  # (batch, H, Q, D)
    key_pages: Array,  # (num_pages, G, page_size, D)
    value_pages: Array,  # (num_pages, G, page_size, value_dim)
    block_tables: Any,  # (batch, max_pages): the pages of item b, in the order of its keys
    kv_lengths: Any,  # (batch,): item b has that many keys, and no others
    *,
    mask: Array | None = None,  # broadcast to (batch, H, Q, longest K)
    bias: Array | None = None,
    return_lse: bool = False,
    **options: Any,  # as in attention
) -> Any:
    """Attention over keys that lie in pages: key j of item b is the key j % page_size of page
    block_tables[b, j // page_size]. (batch, H, Q, value_dim); with return_lse also the lse, (batch, H, Q).
    """
    query, key_pages, value_pages = _one_dtype(query, key_pages, value_pages)
    scores = (*query.shape[:-1], max(kv_lengths, default=0))
    out, lse = (
        np.empty((*query.shape[:-1], value_pages.shape[-1]), query.dtype),
        np.empty(query.shape[:-1], query.dtype),
    )
    for b, kv_len in enumerate(kv_lengths):
        out[b], lse[b] = attention(
            query[b],
            _gather(key_pages, block_tables[b], kv_len),
            _gather(value_pages, block_tables[b], kv_len),
            mask=_cut(mask, scores, np.s_[b, ..., :kv_len]),
            bias=_cut(bias, scores, np.s_[b, ..., :kv_len]),
            return_lse=True,
            **options,
        )
    return (out, lse) if return_lse else out


def _gather(pages: Array, table: Any, kv_len: int) -> Array:
    """The first kv_len keys or values of one item, (G, kv_len, dim)."""
    _, num_kv_heads, page_size, dim = pages.shape
    used = pages[np.asarray(table)[: -(-kv_len // page_size)]]  # (pages, G, page_size, dim)
    gathered: Array = used.swapaxes(0, 1).reshape(num_kv_heads, len(used) * page_size, dim)
    return gathered[:, :kv_len]


def _cut(array: Array | None, shape: tuple[int, ...], where: Any) -> Array | None:
    return None if array is None else np.broadcast_to(array, shape)[where]
