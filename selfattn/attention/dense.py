# SPDX-License-Identifier: Apache-2.0
"""The attention operator on whole arrays: the output, the weights, and how much each key was attended to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from selfattn._checks import as_integers
from selfattn._native import operator as _operator
from selfattn.attention.arrays import Array, Sizes, arithmetic, finish, fitting, fitting_keys, target
from selfattn.attention.options import (
    Alignment,
    AttentionOptions,
    Causal,
    Lengths,
    Problem,
    accepted_by,
    alignment,
    checked,
    no_options,
)
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import Options, WeightOptions

_WEIGHTS = accepted_by("attention_weights", without=("dropout", "seed"))
_COLUMN_SUMS = accepted_by("attention_column_sums", without=("dropout", "seed"))


@overload
def attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    *,
    return_lse: Literal[False] = False,
    out: AnyArray | None = None,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> Array: ...
@overload
def attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    *,
    return_lse: Literal[True],
    out: AnyArray | None = None,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> tuple[Array, Array]: ...


def attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    *,
    mask: AnyArray | None = None,
    bias: AnyArray | None = None,
    causal: Causal = False,
    window: tuple[int | None, int | None] | None = None,
    kv_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    relative_bias: npt.ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    precision: Literal["bfloat16"] | None = None,
    return_lse: bool = False,
    out: AnyArray | None = None,
    num_threads: int | None = None,
) -> Any:
    """softmax(query keyT * scale + bias, over the keys a query may see) value, exactly, in O(threads) memory.

    Scaled dot-product attention of "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.1.

    Args:
        query: (..., num_heads, q_len, head_dim), head_dim >= 1; float32, float64, float16 or bfloat16.
        key: (..., num_kv_heads, kv_len, head_dim); num_heads is a multiple of num_kv_heads, and query head h
            reads key head h // (num_heads / num_kv_heads). Nothing is repeated in memory.
        value: (..., num_kv_heads, kv_len, value_dim). Query, key and value are of one dtype.
        mask: bool, broadcasts to (..., num_heads, q_len, kv_len). True = attend.
        bias: float32 or the query's dtype, broadcasts likewise, added to the scaled scores. -inf masks.
        causal: True = a query sees the keys up to its own index (q_len must equal kv_len); "top_left" is the
            same for other lengths; "bottom_right" aligns the last query with the last key: of the item's
            kv_lengths where they are given, else of kv_len.
        window: (left, right): a query sees the keys from `left` before its position to `right` after it, both
            included; None leaves a side open. As in "Longformer" (Beltagy et al., 2020), section 3.1.
        kv_lengths: (batch,) integers, the valid keys of each item; batch is the first leading dimension.
        scale: a finite number, 1 / sqrt(head_dim) by default. 0 and negative are legal.
        softcap: c > 0 makes each scaled score s into c * tanh(s / c) ("Gemma 2", Google, 2024, section 2).
        alibi_slopes: (num_heads,) finite numbers: slope * |distance| is subtracted from the score of a key at
            that distance from the query's position ("Train Short, Test Long", Press et al., 2022).
        sinks: (num_heads,) numbers, finite or -inf: a logit beside the scores, which takes its share of the
            softmax and adds no value ("gpt-oss-120b & gpt-oss-20b Model Card", OpenAI, 2025).
        relative_bias: (num_heads, 2 * reach + 1) finite numbers: column reach + d is added to the score of a
            key at distance d after the query's position, d cut off at -reach and reach; no (q_len, kv_len)
            array is made ("Self-Attention with Relative Position Representations", Shaw et al., 2018; in
            buckets, T5: Raffel et al., 2020, section 2.1).
        dropout: the share of weights, at least 0 and less than 1, that are 0 on their way to the values; the
            others are divided by 1 - dropout. For training: `attention_backward` takes the same two.
        seed: an integer from 0 to 2**64 - 1, with dropout: it and the position of a weight (leading index,
            head, query, key) say whether it stays, by Philox4x64-10 ("Parallel Random Numbers: As Easy as 1,
            2, 3", Salmon et al., 2011). Take another one for every layer and every step.
        precision: "bfloat16" lets both products round their factors to bfloat16, and sum in float32, where
            the processor has an instruction for it; not for float64 arrays.
        return_lse: also return the log-sum-exp of the scores, masks and sink included, dropout not (natural
            logarithm).
        out: an array of the result's shape and dtype, any strides, to hold the result; it is returned. It may
            overlap an input, and an error leaves it as it was.
        num_threads: threads for this call; by default what `selfattn.threads` and `set_num_threads` say.

    Arrays are NumPy's, or anything on the CPU with __dlpack__ or the buffer protocol (those of PyTorch and
    JAX among them): read in place, at any strides. float16 and ml_dtypes' bfloat16 are computed in float32.
    Leading dimensions broadcast as in NumPy; all masks hold together (AND). The position of a query among
    the keys is its index for causal=True and "top_left", else the last query stands at the last key and the
    others before it; causal, window and alibi_slopes go by it. A row with no key gives 0 and lse -inf, sink
    or not. Masked keys and values reach nothing, even if they hold NaN or Inf. The result is the same to the
    last bit for any number of threads, in any batch, at any strides, on every instruction set with FMA.

    Returns:
        (..., num_heads, q_len, value_dim) in the query's dtype; with return_lse also lse, (..., num_heads,
        q_len) float32 (float64 for float64 arrays).

    Raises:
        TypeError: a type or dtype that is not accepted.
        ValueError: shapes, lengths or numbers that do not fit.
    """
    (query, key, value), (leading, sizes) = fitting(query, key, value)
    no_masks = mask is None and bias is None and window is None and kv_lengths is None
    no_numbers = scale is None and softcap is None and alibi_slopes is None and sinks is None
    no_numbers = no_numbers and relative_bias is None
    no_dropout = seed is None and type(dropout) is float and dropout == 0.0
    if no_masks and no_numbers and no_dropout and precision is None:  # the common call, and quickly
        diagonal = None if causal is False else alignment(causal, sizes[2], sizes[3])
        threads = resolve_num_threads(num_threads)
        options: AttentionOptions | Alignment | None = diagonal
    else:
        problem = Problem(query.dtype, leading, sizes)
        options = checked(
            problem,
            mask=mask,
            bias=bias,
            causal=causal,
            window=window,
            kv_lengths=kv_lengths,
            scale=scale,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            relative_bias=relative_bias,
            dropout=dropout,
            seed=seed,
            precision=precision,
        )
        threads = resolve_num_threads(num_threads)
    shape = (*leading, sizes[0], sizes[2], sizes[5])
    inputs = query, key, value
    result = np.empty(shape, query.dtype) if out is None else _target(out, shape, inputs, sizes, options)
    lse = np.empty(shape[:-1], arithmetic(query.dtype)) if return_lse else None
    _operator.attention(
        query, key, value, result, lse, leading, sizes, options, threads, uninterrupted=result is out
    )
    if out is not None:
        result = finish(result, out)
    return (result, lse) if return_lse else result


def _target(
    out: AnyArray,
    shape: tuple[int, ...],
    inputs: tuple[Array, ...],
    sizes: Sizes,
    options: AttentionOptions | Alignment | None,
) -> Array:
    # slopes, sinks and lengths are copies: they share no memory with `out`
    mask, bias = (options.mask, options.bias) if isinstance(options, AttentionOptions) else (None, None)
    work = math.prod(shape[:-1]) * sizes[3] * (sizes[4] + sizes[5])  # multiply-adds
    return target(out, shape, inputs[0].dtype, (*inputs, mask, bias), work)


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
