"""Attention over a ragged batch: sequences of any lengths, one after another, without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from selfattn import _kernels
from selfattn._checks import as_integers, as_lengths
from selfattn.attention.arrays import Array, arithmetic, finish, head_sizes, operands, target
from selfattn.attention.options import Causal, alignment, mask_and_bias, options
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import Options

    Int64 = npt.NDArray[np.int64]


@overload
def varlen_attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None = None,
    *,
    return_lse: Literal[False] = False,
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
    **options: Unpack[Options],
) -> tuple[Array, Array]: ...


def varlen_attention(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None = None,
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
    dropout: float = 0.0,
    seed: int | None = None,
    precision: Literal["bfloat16"] | None = None,
    return_lse: bool = False,
    out: AnyArray | None = None,
    num_threads: int | None = None,
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
        window, ..., num_threads: as in `attention`. To dropout, sequence b is what leading index b is there,
            and its queries and keys are counted from its own first.

    Returns:
        (total_q, num_heads, value_dim) in the query's dtype; with return_lse also lse, (num_heads, total_q).

    Raises:
        TypeError, ValueError: as `attention`; cu_seqlens that do not fit, naming the entry.
    """
    query, key, value = operands(query, key, value)
    masking = (mask, bias, causal, window, kv_lengths, scale, softcap, alibi_slopes, sinks, precision)
    arrays, call, given = packed_call_arguments(
        query, key, value, cu_seqlens_q, cu_seqlens_kv, *masking, num_threads, dropout, seed
    )
    total_q, num_heads, _ = query.shape
    result = target(out, (total_q, num_heads, value.shape[-1]), query.dtype)
    lse = np.empty((num_heads, total_q), arithmetic(query.dtype)) if return_lse else None
    _kernels.attention(*arrays, result.swapaxes(0, 1), lse, *call, **given)
    result = finish(result, out)
    return (result, lse) if return_lse else result


def packed_call_arguments(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_kv: npt.ArrayLike | None,
    mask: AnyArray | None,
    bias: AnyArray | None,
    causal: Causal,
    window: tuple[int | None, int | None] | None,
    kv_lengths: npt.ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: npt.ArrayLike | None,
    sinks: npt.ArrayLike | None,
    precision: str | None,
    num_threads: int | None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> tuple[tuple[Array, Array, Array], tuple[Any, ...], dict[str, Any]]:
    """For _kernels.attention: the arrays as (heads, total, dim), the rest from the mask on, and by name."""
    _require_packed(query, key, value)
    q, k, v = (array.swapaxes(0, 1) for array in (query, key, value))
    _, (num_heads, num_kv_heads, total_q, _, head_dim, value_dim) = head_sizes(q, k, v)
    bounds = _bounds(cu_seqlens_q, cu_seqlens_kv, total_q, len(key))
    q_lens, kv_lens = (np.diff(cu_seqlens) for cu_seqlens in bounds.values())
    longest_q, longest_kv = int(q_lens.max(initial=0)), int(kv_lens.max(initial=0))
    scores = (num_heads, total_q, longest_kv)
    mask, bias = mask_and_bias(mask, bias, scores, query.dtype, "(num_heads, total_q, max_kv_len)")
    diagonal = _alignment(causal, q_lens, kv_lens)
    numbers = (scale, window, softcap, alibi_slopes, sinks, precision, dropout, seed)
    factor, given = options(num_heads, head_dim, query.dtype, *numbers)
    if kv_lengths is not None:
        given["kv_lengths"] = as_lengths("kv_lengths", kv_lengths, kv_lens.size, kv_lens)
    sizes = (num_heads, num_kv_heads, longest_q, longest_kv, head_dim, value_dim)
    call = (mask, bias, (), sizes, factor, diagonal, resolve_num_threads(num_threads))
    return (q, k, v), call, given | bounds


def _require_packed(*arrays: Array) -> None:
    for name, array in zip(("query", "key", "value"), arrays, strict=True):
        if array.ndim != 3:
            sizes = "(total_q, num_heads, head_dim)" if name == "query" else "(total_kv, num_kv_heads, dim)"
            raise ValueError(f"{name} has shape {array.shape}; packed sequences have 3 dimensions, {sizes}")


def _bounds(
    cu_seqlens_q: npt.ArrayLike, cu_seqlens_kv: npt.ArrayLike | None, total_q: int, total_kv: int
) -> dict[str, Int64]:
    """The bounds of queries and of keys, of the same number of sequences."""
    q_name, kv_name = "cu_seqlens_q", "cu_seqlens_q" if cu_seqlens_kv is None else "cu_seqlens_kv"
    q = _cu_seqlens(q_name, cu_seqlens_q, "query", total_q)
    kv = _cu_seqlens(kv_name, cu_seqlens_q if cu_seqlens_kv is None else cu_seqlens_kv, "key", total_kv)
    if q.size != kv.size:
        raise ValueError(
            f"cu_seqlens_q bounds {q.size - 1} sequences and cu_seqlens_kv {kv.size - 1}; they must be equal"
        )
    return {"cu_seqlens_q": q, "cu_seqlens_kv": kv}


def _cu_seqlens(name: str, x: npt.ArrayLike, packed: str, total: int) -> Int64:
    bounds = as_integers(name, x)
    if bounds.ndim != 1 or bounds.size == 0:
        raise ValueError(f"{name} has shape {bounds.shape}; it must be (sequences + 1,), at least (1,)")
    if bounds[0] != 0 or bounds[-1] != total:
        raise ValueError(
            f"{name} goes from {bounds[0]} to {bounds[-1]}; {packed} needs it from 0 to its length, {total}"
        )
    falls = np.flatnonzero(bounds[1:] < bounds[:-1])
    if falls.size:
        b = falls[0]
        raise ValueError(f"{name}[{b + 1}]={bounds[b + 1]} must not be less than {name}[{b}]={bounds[b]}")
    return bounds


def _alignment(causal: Causal, q_lens: Int64, kv_lens: Int64) -> str | None:
    differing = np.flatnonzero(q_lens != kv_lens)
    if differing.size and isinstance(causal, bool | np.bool_) and causal:
        b = differing[0]
        raise ValueError(
            f"causal=True with q_len={q_lens[b]} and kv_len={kv_lens[b]} in sequence {b} is ambiguous: "
            'say causal="top_left" or causal="bottom_right"'
        )
    return alignment(causal, 0, 0)
