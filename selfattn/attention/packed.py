# SPDX-License-Identifier: Apache-2.0
"""Attention over a packed batch: sequences of any lengths, one after another, without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from selfattn._checks import as_cu_seqlens
from selfattn._native import operator as _operator
from selfattn.attention.arrays import Array, arithmetic, finish, head_sizes, operands, target
from selfattn.attention.options import AttentionOptions, Problem, accepted_by, checked, no_options
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn._checks import Int64
    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import Options

_VARLEN = accepted_by("varlen_attention")


@overload
def varlen_attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None = None,
    *,
    return_lse: Literal[False] = False,
    out: AnyArray | None = None,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> Array: ...
@overload
def varlen_attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None = None,
    *,
    return_lse: Literal[True],
    out: AnyArray | None = None,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> tuple[Array, Array]: ...


def varlen_attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None = None,
    *,
    return_lse: bool = False,
    out: AnyArray | None = None,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> Any:
    """`attention` of each sequence of a packed batch to itself: the same bits as one call for each of them.

    Args:
        query: (total_q, num_heads, head_dim); sequence b is query[cu_seqlens_q[b]:cu_seqlens_q[b + 1]].
        key, value: (total_kv, num_kv_heads, head_dim or value_dim), likewise by cu_seqlens_kv.
        cu_seqlens_q: (sequences + 1,) integers from 0 to total_q, none less than the one before; a sequence
            may be empty.
        cu_seqlens_kv: the same for keys and values; cu_seqlens_q by default.
        mask, bias: broadcast to (num_heads, total_q, max_kv_len): column j of a row is key j of its sequence.
        kv_lengths: (sequences,) how many keys of each sequence count.
        causal: as in `attention`, in every sequence; True needs as many queries as keys in each.
        window, scale, softcap, alibi_slopes, sinks, precision, return_lse, out, num_threads: as there.
        dropout, seed: as there. To dropout, sequence b is what leading index b is there,
            and its queries and keys are counted from its own first.

    Returns:
        (total_q, num_heads, value_dim) in the query's dtype; with return_lse also lse, (num_heads, total_q).

    Raises:
        TypeError, ValueError: as `attention`; cu_seqlens that do not fit, naming the entry.
    """
    _VARLEN.refuse_others(options)
    query, key, value = operands(query, key, value)
    sequences = packed_sequences(query, key, value, cu_seqlens_q, cu_seqlens_kv)
    record = checked(sequences.problem, **options) if options else no_options(query.shape[-1])
    result = target(out, (*query.shape[:-1], value.shape[-1]), query.dtype)
    lse = np.empty(query.shape[1::-1], arithmetic(query.dtype)) if return_lse else None
    attend(query, key, value, sequences, record, result, lse, resolve_num_threads(num_threads))
    result = finish(result, out)
    return (result, lse) if return_lse else result


class Sequences(NamedTuple):
    """Where the sequences lie in packed arrays, checked."""

    problem: Problem
    cu_seqlens_q: Int64
    cu_seqlens_kv: Int64


def packed_sequences(
    query: Array, key: Array, value: Array, cu_seqlens_q: npt.ArrayLike, cu_seqlens_kv: npt.ArrayLike | None
) -> Sequences:
    """The arrays, (tokens, heads, dim) of one dtype, and the bounds of their sequences, checked."""
    _require_packed(query, key, value)
    name = "cu_seqlens_q" if cu_seqlens_kv is None else "cu_seqlens_kv"
    q = as_cu_seqlens("cu_seqlens_q", cu_seqlens_q, len(query), "the length of query")
    if cu_seqlens_kv is None and len(key) == len(query):
        return sequences_of(query, key, value, q, q)
    kv = as_cu_seqlens(
        name, cu_seqlens_q if cu_seqlens_kv is None else cu_seqlens_kv, len(key), "the length of key"
    )
    if q.size != kv.size:
        raise ValueError(
            f"cu_seqlens_q bounds {q.size - 1} sequences and cu_seqlens_kv {kv.size - 1}; they must be equal"
        )
    return sequences_of(query, key, value, q, kv)


def sequences_of(query: Array, key: Array, value: Array, cu_q: Int64, cu_kv: Int64) -> Sequences:
    """The same for bounds that were checked."""
    heads_first = (array.swapaxes(0, 1) for array in (query, key, value))
    _, (num_heads, num_kv_heads, total_q, _, head_dim, value_dim) = head_sizes(*heads_first)
    q_lens = cu_q[1:] - cu_q[:-1]
    kv_lens = q_lens if cu_kv is cu_q else cu_kv[1:] - cu_kv[:-1]
    longest_q, longest_kv = int(q_lens.max(initial=0)), int(kv_lens.max(initial=0))
    sizes = (num_heads, num_kv_heads, longest_q, longest_kv, head_dim, value_dim)
    return Sequences(Problem(query.dtype, (), sizes, kv_lens, q_lens, total_q), cu_q, cu_kv)


def attend(
    query: Array,
    key: Array,
    value: Array,
    sequences: Sequences,
    options: AttentionOptions,
    result: Array,
    lse: Array | None,
    num_threads: int,
) -> None:
    """Computes `result`, (total_q, num_heads, value_dim), and lse, (num_heads, total_q). Checks nothing."""
    problem, cu_seqlens_q, cu_seqlens_kv = sequences
    q, k, v, out = (array.swapaxes(0, 1) for array in (query, key, value, result))
    _operator.attention(
        q, k, v, out, lse, problem.leading, problem.sizes, options, num_threads,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_kv=cu_seqlens_kv,
    )  # fmt: skip


def _require_packed(*arrays: Array) -> None:
    for name, array in zip(("query", "key", "value"), arrays, strict=True):
        if array.ndim != 3:
            sizes = "(total_q, num_heads, head_dim)" if name == "query" else "(total_kv, num_kv_heads, dim)"
            raise ValueError(f"{name} has shape {array.shape}; packed sequences have 3 dimensions, {sizes}")
