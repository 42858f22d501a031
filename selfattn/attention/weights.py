# SPDX-License-Identifier: Apache-2.0
"""The attention weights themselves: whole, of chosen queries, or summed over the queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integers
from selfattn._native import operator as _operator
from selfattn.attention.arrays import Array, arithmetic, fitting_keys
from selfattn.attention.options import (
    AttentionOptions,
    Lengths,
    Problem,
    accepted_by,
    checked,
    no_options,
)
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import WeightOptions

_WEIGHTS = accepted_by("attention_weights", without=("dropout", "seed"))
_COLUMN_SUMS = accepted_by("attention_column_sums", without=("dropout", "seed"))


def attention_weights(
    query: AnyArray,
    key: AnyArray,
    *,
    rows: npt.ArrayLike | None = None,
    num_threads: int | None = None,
    **options: Unpack[WeightOptions],
) -> Array:
    """How much each query attends to each key: the softmax that `attention` applies to the values.

    Args:
        query, key, num_threads: as in `attention`.
        mask, bias, causal, window, kv_lengths, scale, softcap, alibi_slopes, sinks, precision: as there.
        rows: (n,) integers: only the weights of these queries, which keep their positions and masks.

    Returns:
        (..., num_heads, q_len or n, kv_len) in the query's dtype. Rows sum to 1, less what a sink takes;
        masked keys and rows with no key are 0.

    Raises:
        TypeError, ValueError: as `attention`; rows that are no integers, or beyond q_len.
    """
    _WEIGHTS.refuse_others(options)
    (query, key), (leading, sizes) = fitting_keys(query, key)
    problem = Problem(query.dtype, leading, sizes)
    record, threads = (
        checked(problem, **options) if options else no_options(sizes[4]),
        resolve_num_threads(num_threads),
    )
    if rows is not None:
        return _weights_of_rows(query, key, _rows(rows, sizes[2]), problem, record, threads)
    return weigh(query, key, problem, record, threads)


def weigh(query: Array, key: Array, problem: Problem, options: AttentionOptions, num_threads: int) -> Array:
    """`attention_weights` with nothing left to check."""
    num_heads, _, q_len, kv_len, _, _ = problem.sizes
    weights = np.empty((*problem.leading, num_heads, q_len, kv_len), query.dtype)
    leading, sizes = problem.leading, problem.sizes
    _operator.attention(query, key, None, weights, None, leading, sizes, options, num_threads, what="weights")
    return weights


def attention_column_sums(
    query: AnyArray,
    key: AnyArray,
    *,
    num_threads: int | None = None,
    **options: Unpack[WeightOptions],
) -> Array:
    """How much each key is attended to in all: `attention_weights` summed over the queries, never held whole.

    Args:
        query, key, num_threads: as in `attention`.
        mask, bias, causal, window, kv_lengths, scale, softcap, alibi_slopes, sinks, precision: as there.

    Returns:
        (..., num_heads, kv_len); float64 for float64 arrays, else float32: of float16's range the sum over
        some thousand queries leaves too little. Keys that no query sees are 0.

    Raises:
        TypeError, ValueError: as `attention`.
    """
    _COLUMN_SUMS.refuse_others(options)
    (query, key), (leading, sizes) = fitting_keys(query, key)
    problem = Problem(query.dtype, leading, sizes)
    record = checked(problem, **options) if options else no_options(sizes[4])
    call = leading, sizes, record, resolve_num_threads(num_threads)
    rows = np.empty((*leading, sizes[0], sizes[2], 2), arithmetic(query.dtype))
    _operator.attention(query, key, None, None, rows, *call, what="row_statistics")
    sums = np.zeros((*leading, sizes[0], sizes[3]))
    _operator.attention(query, key, None, sums, rows, *call, what="column_sums")
    return sums.astype(rows.dtype, copy=False)


# ---- chosen rows ----


def _rows(rows: npt.ArrayLike, q_len: int) -> npt.NDArray[np.int64]:
    chosen = as_integers("rows", rows)
    if chosen.ndim != 1:
        raise ValueError(f"rows has shape {chosen.shape}; it must be (n,)")
    wrong = chosen[(chosen < -q_len) | (chosen >= q_len)]
    if wrong.size:
        raise ValueError(f"rows holds {wrong[0]}; it must be between 0 and q_len - 1 = {q_len - 1}")
    return np.where(chosen < 0, chosen + q_len, chosen)


def _weights_of_rows(
    query: Array,
    key: Array,
    rows: npt.NDArray[np.int64],
    problem: Problem,
    options: AttentionOptions,
    num_threads: int,
) -> Array:
    """The weights of these queries alone, each at the position that it has among all of them.

    Where every item has a last key of its own, the positions differ and each item is a call of its own.
    """
    _, leading, (num_heads, num_kv_heads, q_len, kv_len, head_dim, _) = problem[:3]
    query, weights = query[..., rows, :], np.empty((*leading, num_heads, rows.size, kv_len), query.dtype)
    options = options._replace(mask=_of_rows(options.mask, rows), bias=_of_rows(options.bias, rows))
    sizes = (num_heads, num_kv_heads, rows.size, kv_len, head_dim, 0)

    def weigh(part: slice, first_position: int) -> None:
        q, k, m, b = (_of_items(x, part, len(leading)) for x in (query, key, options.mask, options.bias))
        lengths = None if options.kv_lengths is None else Lengths(options.kv_lengths[part])
        how = options._replace(mask=m, bias=b, kv_lengths=lengths)
        some = weights[part]
        _operator.attention(
            q, k, None, some, None, some.shape[:-3], sizes, how, num_threads,
            what="weights", positions=rows + first_position,
        )  # fmt: skip

    if options.causal == "top_left":
        weigh(slice(None), 0)
    elif options.causal is None or options.kv_lengths is None:
        weigh(slice(None), kv_len - q_len)
    elif not leading:
        weigh(slice(None), int(options.kv_lengths[0]) - q_len)
    else:
        for item, length in enumerate(options.kv_lengths.tolist()):
            weigh(slice(item, item + 1), length - q_len)
    return weights


def _of_rows(array: Array | None, rows: npt.NDArray[np.int64]) -> Any:
    return array if array is None or array.ndim < 2 or array.shape[-2] == 1 else array[..., rows, :]


def _of_items(array: Any, part: slice, num_leading: int) -> Any:
    """The items of the first of the leading dimensions, where the array has it and not for all at once."""
    return array if array is None or array.ndim < num_leading + 3 or array.shape[0] == 1 else array[part]
