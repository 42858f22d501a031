# SPDX-License-Identifier: Apache-2.0
"""The attention operator on whole arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from selfattn._native import operator as _operator
from selfattn.attention.arrays import Array, Sizes, arithmetic, finish, fitting, target
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import Alignment, AttentionOptions, Causal, Options


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
        options: AttentionOptions | Alignment | None = None
        if causal is not False:
            options = "top_left" if causal is True and sizes[2] == sizes[3] else _diagonal(causal, sizes)
    else:
        from selfattn.attention.options import (  # here: a call without options needs none of it
            Problem,
            checked,
        )

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


def _diagonal(causal: Causal, sizes: Sizes) -> Alignment | None:
    from selfattn.attention.options import alignment

    return alignment(causal, sizes[2], sizes[3])


def _target(
    out: AnyArray,
    shape: tuple[int, ...],
    inputs: tuple[Array, ...],
    sizes: Sizes,
    options: AttentionOptions | Alignment | None,
) -> Array:
    # slopes, sinks and lengths are copies: they share no memory with `out`
    mask, bias = (None, None) if options is None or isinstance(options, str) else (options.mask, options.bias)
    work = math.prod(shape[:-1]) * sizes[3] * (sizes[4] + sizes[5])  # multiply-adds
    return target(out, shape, inputs[0].dtype, (*inputs, mask, bias), work)
