# SPDX-License-Identifier: Apache-2.0
"""The gradients of attention: of whole arrays, or of a packed batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._native import operator as _operator
from selfattn.attention.arrays import Array, arithmetic, as_array, head_sizes, operands
from selfattn.attention.options import AttentionOptions, Problem, accepted_by, checked, no_options
from selfattn.attention.packed import Sequences, packed_sequences
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from collections.abc import Iterable
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import Options

_BACKWARD = accepted_by("attention_backward")
_VARLEN_BACKWARD = accepted_by("varlen_attention_backward")
_NAMES = ("query", "key", "value", "grad_out", "out")
_QKV = ("query", "key", "value")


def attention_backward(
    grad_out: AnyArray,
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    out: AnyArray,
    lse: AnyArray,
    *,
    need: Iterable[str] = _QKV,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> tuple[Array, ...]:
    """The gradients of a loss through `attention`, from the gradient of the loss by its output.

    Of the forward computation only its output and lse are kept. The weights are computed again, block by
    block, as exp(scores - lse), so that no (q_len, kv_len) matrix is made: "FlashAttention-2" (Dao, 2023),
    section 2.3 and algorithm 2. With P the weights and D = rowsum(grad_out * out), the gradient by the scores
    is P * (grad_out valueT - D), and the others follow from it.

    Args:
        grad_out: (..., num_heads, q_len, value_dim), the dtype of the query.
        query, key, value: what attention was given.
        out, lse: what attention gave with return_lse=True.
        mask, bias, causal, window, kv_lengths, scale, softcap, alibi_slopes, sinks, dropout, seed: what
            attention was given. The same seed drops the same weights.
        precision: what attention was given; the gradients are in float32 all the same.
        need: names of the gradients to compute: of "query", "key", "value", "bias", "sinks", "alibi_slopes",
            the last three if they were given. What is not needed costs nothing, or less.
        num_threads: as in `attention`.

    Arrays are taken as by `attention`, at any strides. A row with no key has a gradient of 0 and gives none.
    Masked keys and values reach nothing, even if they hold NaN or Inf. float16 and bfloat16 are computed and
    summed in float32 and rounded once. The gradients are the same to the last bit for any number of threads;
    those of an item's query, key and value in any batch (with dropout, at the same place in it).

    Returns:
        The gradients in the order of `need`, each of the shape and dtype of its argument, summed over the
        dimensions along which that was broadcast; those of sinks and alibi_slopes, (num_heads,), in the dtype
        of the lse.

    Raises:
        TypeError, ValueError: as `attention`; grad_out, out or lse of another shape or dtype than attention
            gave; a `need` that is none of these, or of what was not given.
    """
    _BACKWARD.refuse_others(options)
    query, key, value, grad_out, out = operands(query, key, value, grad_out, out, names=_NAMES)
    leading, sizes = head_sizes(query, key, value)
    problem = Problem(query.dtype, leading, sizes)
    record = checked(problem, **options) if options else no_options(sizes[4])
    names = _needed(
        need,
        bias=record.bias,
        sinks=record.sinks,
        alibi_slopes=record.alibi_slopes,
        relative_bias=record.relative_bias,
    )
    rows = (*leading, sizes[0], sizes[2])
    _require_shape((*rows, sizes[5]), grad_out=grad_out, out=out)
    lse = _lse(lse, rows, query.dtype)
    originals = {"query": query, "key": key, "value": value, "bias": record.bias}
    if query.shape[:-3] != leading:  # its gradients are to be summed before they are rounded
        wide = (array.astype(lse.dtype, copy=False) for array in (grad_out, query, key, value, out))
        grad_out, query, key, value, out = wide
    grads = _zeros(names, leading, rows, query, key, value, record)
    arrays = grad_out, query, key, value, out, lse
    _operator.attention_backward(arrays, grads, leading, sizes, record, resolve_num_threads(num_threads))
    return tuple(_finished(name, grads[name], originals.get(name), lse.dtype) for name in names)


def varlen_attention_backward(
    grad_out: AnyArray,
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    out: AnyArray,
    lse: AnyArray,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None = None,
    *,
    need: Iterable[str] = _QKV,
    num_threads: int | None = None,
    **options: Unpack[Options],
) -> tuple[Array, ...]:
    """`attention_backward` of each sequence of a packed batch: the same bits as one call for each of them.

    (Without dropout: which weights it drops goes by a sequence's place in the batch.)

    Args:
        grad_out: (total_q, num_heads, value_dim), the dtype of the query.
        query, key, value, cu_seqlens_q, cu_seqlens_kv: what varlen_attention was given.
        out, lse: what it gave with return_lse=True, (total_q, num_heads, value_dim), (num_heads, total_q).
        mask, bias, causal, window, kv_lengths, scale, softcap, alibi_slopes, sinks, dropout, seed, precision:
            what it was given.
        need: names of the gradients to compute: of "query", "key", "value", "sinks", "alibi_slopes".
        num_threads: as in `attention`.

    Returns:
        The gradients in the order of `need`, as attention_backward; those of sinks and alibi_slopes are
        summed over the sequences.

    Raises:
        TypeError, ValueError: as `attention_backward` and `varlen_attention`.
    """
    _VARLEN_BACKWARD.refuse_others(options)
    query, key, value, grad_out, out = operands(query, key, value, grad_out, out, names=_NAMES)
    sequences = packed_sequences(query, key, value, cu_seqlens_q, cu_seqlens_kv)
    record = checked(sequences.problem, **options) if options else no_options(query.shape[-1])
    names = _needed(
        need, sinks=record.sinks, alibi_slopes=record.alibi_slopes, relative_bias=record.relative_bias
    )
    total_q, num_heads, _ = query.shape
    _require_shape((total_q, num_heads, value.shape[-1]), grad_out=grad_out, out=out)
    lse = _lse(lse, (num_heads, total_q), query.dtype)
    arrays = grad_out, query, key, value, out
    return packed_gradients(arrays, lse, sequences, record, names, resolve_num_threads(num_threads))


def packed_gradients(
    arrays: tuple[Array, Array, Array, Array, Array],
    lse: Array,
    sequences: Sequences,
    options: AttentionOptions,
    names: tuple[str, ...],
    num_threads: int,
) -> tuple[Array, ...]:
    """The same with nothing left to check; the arrays are grad_out, query, key, value and out."""
    _, query, key, value, _ = arrays
    total_q, num_heads, _ = query.shape
    grads = _zeros(names, (), (num_heads, total_q), query, key, value, options)
    heads_first = {name: grad.swapaxes(0, 1) if name in _QKV else grad for name, grad in grads.items()}
    g, q, k, v, o = (array.swapaxes(0, 1) for array in arrays)
    _operator.attention_backward(
        (g, q, k, v, o, lse), heads_first, (), sequences.problem.sizes, options, num_threads,
        cu_seqlens_q=sequences.cu_seqlens_q, cu_seqlens_kv=sequences.cu_seqlens_kv,
    )  # fmt: skip
    originals = {"query": query, "key": key, "value": value}
    return tuple(_finished(name, grads[name], originals.get(name), lse.dtype) for name in names)


# ---- checks ----


def _needed(need: Iterable[str], **given: Any) -> tuple[str, ...]:
    if isinstance(need, str):
        raise TypeError(f"need={need!r} must be a tuple of names: need=({need!r},)")
    if isinstance(need, set | frozenset):
        raise TypeError(f"need={need!r} is a set; the gradients come in the order of need: pass a tuple")
    names = tuple(need)
    for name in names:
        if name not in (*_QKV, *given):
            raise ValueError(f"need has {name!r}; it takes {', '.join((*_QKV, *given))}")
        if name not in _QKV and given[name] is None:
            raise ValueError(f"need has {name!r}, and no {name} was given: pass {name}= as to attention")
    return names


def _require_shape(shape: tuple[int, ...], **arrays: Array) -> None:
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; attention of these arrays gives {shape}")


def _lse(x: AnyArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    lse = as_array("lse", x)
    if lse.dtype != arithmetic(dtype):
        raise TypeError(f"lse has dtype {lse.dtype}; attention of {dtype} arrays gives {arithmetic(dtype)}")
    _require_shape(shape, lse=lse)
    return lse


# ---- gradients ----


def _zeros(
    names: tuple[str, ...],
    leading: tuple[int, ...],
    rows: tuple[int, ...],
    query: Array,
    key: Array,
    value: Array,
    options: AttentionOptions,
) -> dict[str, Array]:
    """What the kernels add to, by name: for keys and values both or none; for sinks and slopes row by row."""
    shapes = {n: (*leading, *x.shape[-3:]) for n, x in zip(_QKV, (query, key, value), strict=True)}
    shapes |= {"sinks": rows, "alibi_slopes": rows}
    dtypes = {"query": query.dtype}  # a row is finished where it is computed; the others are sums
    wanted = {*names, *(("key", "value") if {"key", "value"} & {*names} else ())}
    grads = {
        name: np.zeros(shape, dtypes.get(name, arithmetic(query.dtype)))
        for name, shape in shapes.items()
        if name in wanted
    }
    for name in ("bias", "relative_bias"):
        if name in wanted:
            grads[name] = np.zeros(getattr(options, name).shape)
    return grads


def _finished(name: str, grad: Array, original: Array | None, computed_in: np.dtype[Any]) -> Array:
    """Summed over what was broadcast, in the dtype of what it is the gradient of."""
    if name == "relative_bias":  # summed by the kernels
        return grad.astype(computed_in)
    if original is None:  # (..., num_heads, rows): of one number for each head
        dtype, shape = grad.dtype, grad.shape[-2:-1]
        axes = [*range(grad.ndim - 2), grad.ndim - 1]
    else:
        dtype, shape = original.dtype, original.shape
        added = grad.ndim - original.ndim
        axes = [i for i, size in enumerate(grad.shape) if i < added or shape[i - added] != size]
    with np.errstate(invalid="ignore", over="ignore"):  # Inf and NaN are passed on, as by the kernels
        if axes:
            grad = grad.sum(axis=tuple(axes), keepdims=True, dtype=np.float64).reshape(shape)
        return grad.astype(dtype, copy=False)
