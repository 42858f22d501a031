# SPDX-License-Identifier: Apache-2.0
"""The specification of the gradients of attention, in plain NumPy.

Nothing of the forward computation is kept but its output and lse: the weights come back as exp(scores - lse)
("FlashAttention-2", Dao, 2023, section 2.3 and algorithm 2). With S the scores, P the weights, Z what dropout
multiplies them by (1 without) and O = (P * Z) V, writing dX for the gradient of a loss with respect to X:

    dV = (P * Z)^T dO                      dP = (dO V^T) * Z
    D = rowsum(dO * O) = rowsum(dP * P)    dS = P * (dP - D)

Sizes: `...` leading dimensions, H query heads, G key/value heads, Q queries, K keys, D head_dim.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn.attention.arrays import Array
from selfattn.reference.attention import (
    _cut,
    _expand_heads,
    _key_distance,
    _one_dtype,
    _weighted_sum,
    masked_scores,
)
from selfattn.reference.dropout import dropout_factors

if TYPE_CHECKING:
    from collections.abc import Callable

QKV = ("query", "key", "value")


def attention_backward(
    grad_out: Array,  # (..., H, Q, value_dim)
    query: Array,  # (..., H, Q, D)
    key: Array,  # (..., G, K, D)
    value: Array,  # (..., G, K, value_dim)
    out: Array,  # (..., H, Q, value_dim)
    lse: Array,  # (..., H, Q)
    *,
    need: tuple[str, ...] = QKV,
    sinks: Array | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    first_item: int = 0,
    **masking: Any,  # as in masked_scores
) -> tuple[Array, ...]:
    """The gradients of sum(grad_out * attention(...)) that `need` names, each of the shape of its argument.

    A row with no key has no gradient and gives none. NaN behind a mask reaches nothing here either.
    """
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    shapes |= {"sinks": query.shape[-3:-2], "alibi_slopes": query.shape[-3:-2]}
    shapes["bias"] = np.asarray(masking.get("bias")).shape
    shapes["relative_bias"] = np.asarray(masking.get("relative_bias")).shape
    grad_out, query, key, value, out, lse = _one_dtype(grad_out, query, key, value, out, lse)
    leading, num_heads = grad_out.shape[:-3], query.shape[-3]
    query, key, value = (np.broadcast_to(x, leading + x.shape[-3:]) for x in (query, key, value))
    num_kv_heads, key, value = key.shape[-3], _expand_heads(key, num_heads), _expand_heads(value, num_heads)
    given: Any = {name: masking.get(name) for name in ("scale", "softcap")}
    scale = 1 / math.sqrt(query.shape[-1]) if given["scale"] is None else given["scale"]

    scores = masked_scores(query, key, **masking)  # (..., H, Q, K)
    attend = scores != -np.inf
    factors = dropout_factors(scores.shape, dropout, seed, scores.dtype, first_item)  # 1 without dropout
    with np.errstate(invalid="ignore", over="ignore"):
        weights = np.where(attend, np.exp(scores - lse[..., None]), 0)
        delta = (grad_out * out).sum(axis=-1)  # (..., H, Q)
        grad_weights = grad_out @ value.swapaxes(-1, -2) * factors
        grad_scores = np.where(attend, weights * (grad_weights - delta[..., None]), 0)  # (..., H, Q, K)
        grad_products = grad_scores * scale  # of query @ key^T
        if given["softcap"] is not None:  # c * tanh(s / c) has the derivative 1 - tanh(s / c)^2
            tanh = masked_scores(query, key, **given) / given["softcap"]
            grad_products = np.where(attend, grad_products * (1 - tanh**2), 0)

    def by_key(pairs: Array, rows: Array) -> Array:
        """pairs^T rows, (..., G, K, dim), summed over the query heads that share a key head."""
        each = _weighted_sum(pairs.swapaxes(-1, -2), rows, attend.swapaxes(-1, -2))  # (..., H, K, dim)
        groups = (*leading, num_kv_heads, num_heads // num_kv_heads, *each.shape[-2:])
        total: Array = each.reshape(groups).sum(axis=-3)
        return total

    gradients: dict[str, Callable[[], Array]] = {
        "query": lambda: _weighted_sum(grad_products, key, attend),
        "key": lambda: by_key(grad_products, query),
        "value": lambda: by_key(weights * factors, grad_out),
        "bias": lambda: grad_scores,
        "sinks": lambda: _grad_sinks(np.asarray(sinks), lse, delta).sum(axis=-1),
        "alibi_slopes": lambda: -(grad_scores * np.abs(_distances(scores.shape, masking))).sum(axis=(-2, -1)),
        "relative_bias": lambda: _grad_relative(grad_scores, _distances(scores.shape, masking), shapes),
    }
    return tuple(_sum_to(gradients[name](), shapes[name]) for name in need)


def _grad_sinks(sinks: Array, lse: Array, delta: Array) -> Array:
    """Row by row, (..., H, Q): the sink's weight times how far its value, 0, is from the row's output."""
    with np.errstate(invalid="ignore", over="ignore"):
        weight = np.exp(sinks.astype(lse.dtype)[:, None] - lse)
        rows: Array = np.where(lse == -np.inf, 0, -weight * delta)  # a row with no key has no sink either
    return rows


def _distances(scores: tuple[int, ...], masking: dict[str, Any]) -> Array:
    """How far every key is from its query's position, broadcasting to the scores; as in masked_scores."""
    lengths = masking.get("kv_lengths")
    if lengths is not None:
        lengths = np.reshape(lengths, np.shape(lengths) + (1,) * (len(scores) - np.ndim(lengths)))
    return _key_distance(scores[-2], scores[-1], masking.get("causal", False), lengths)


def _grad_relative(grad_scores: Array, distance: Array, shapes: dict[str, tuple[int, ...]]) -> Array:
    """(H, 2 * reach + 1): each pair's part in the column of its distance."""
    num_heads, width = shapes["relative_bias"]
    column = np.broadcast_to(np.clip(distance, -(width // 2), width // 2) + width // 2, grad_scores.shape)
    total = np.zeros((num_heads, width), grad_scores.dtype)
    for head in range(num_heads):
        pairs = grad_scores[..., head, :, :], column[..., head, :, :]
        total[head] = np.bincount(pairs[1].ravel(), weights=pairs[0].ravel(), minlength=width)
    return total


def _sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Summed over the dimensions along which an argument of that shape was broadcast."""
    added = gradient.ndim - len(shape)
    axes = [axis for axis in range(gradient.ndim) if axis < added or shape[axis - added] == 1]
    total: Array = gradient.sum(axis=tuple(axes), keepdims=True)
    return total.reshape(shape)


def varlen_attention_backward(
    grad_out: Array,  # (total_q, H, value_dim)
    query: Array,  # (total_q, H, D)
    key: Array,  # (total_kv, G, D)
    value: Array,  # (total_kv, G, value_dim)
    out: Array,  # (total_q, H, value_dim)
    lse: Array,  # (H, total_q)
    cu_seqlens_q: Any,
    cu_seqlens_kv: Any = None,
    *,
    need: tuple[str, ...] = QKV,  # and "sinks", "alibi_slopes", "relative_bias"
    mask: Array | None = None,
    bias: Array | None = None,
    kv_lengths: Any = None,
    **options: Any,  # as in attention_backward
) -> tuple[Array, ...]:
    """The gradients of varlen_attention: those of each sequence; of sinks and slopes, their sum."""
    cu_seqlens_kv = cu_seqlens_q if cu_seqlens_kv is None else cu_seqlens_kv
    scores = (query.shape[1], len(query), max(np.diff(cu_seqlens_kv), default=0))
    dtype = _one_dtype(grad_out, query, key, value, out, lse)[0].dtype
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    shape_of = shapes | {"relative_bias": np.asarray(options.get("relative_bias")).shape}
    gradients = [np.zeros(shape_of.get(name, query.shape[1:2]), dtype) for name in need]
    for s, (first, last) in enumerate(itertools.pairwise(cu_seqlens_q)):
        rows, keys = slice(first, last), slice(cu_seqlens_kv[s], cu_seqlens_kv[s + 1])
        part = np.s_[:, rows, : keys.stop - keys.start]
        own = grad_out[rows], query[rows], key[keys], value[keys], out[rows]
        g, q, k, v, o = (array.swapaxes(0, 1) for array in own)  # (heads, length, dim)
        grads = attention_backward(
            g,
            q,
            k,
            v,
            o,
            lse[:, rows],
            need=need,
            mask=_cut(mask, scores, part),
            bias=_cut(bias, scores, part),
            kv_lengths=None if kv_lengths is None else kv_lengths[s],
            first_item=s,
            **options,
        )
        for name, whole, grad in zip(need, gradients, grads, strict=True):
            if name in shapes:
                whole[rows if name == "query" else keys] = grad.swapaxes(0, 1)
            else:
                whole += grad
    return tuple(gradients)
