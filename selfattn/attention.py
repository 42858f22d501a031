"""The attention operator: checks its arguments, names what is wrong with them, and calls the kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from selfattn import _kernels
from selfattn._checks import as_number
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Causal = bool | Literal["top_left", "bottom_right"]


@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    kv_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Float32: ...
@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    kv_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
    out: Array | None = None,
    num_threads: int | None = None,
) -> tuple[Float32, Float32]: ...


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    kv_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    """softmax(query keyT * scale + bias, over the keys a query may see) value, exactly, in O(threads) memory.

    Scaled dot-product attention of "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.1.

    Args:
        query: (..., num_heads, q_len, head_dim) float32, any strides; head_dim >= 1.
        key: (..., num_kv_heads, kv_len, head_dim) float32; num_heads is a multiple of num_kv_heads, and query
            head h reads key head h // (num_heads / num_kv_heads). Nothing is repeated in memory.
        value: (..., num_kv_heads, kv_len, value_dim) float32.
        mask: bool, broadcasts to (..., num_heads, q_len, kv_len). True = attend.
        bias: float32, broadcasts likewise, added to the scaled scores. -inf masks like False.
        causal: True = a query sees the keys up to its own index (q_len must equal kv_len); "top_left" is the
            same for other lengths; "bottom_right" aligns the last query with the last of the kv_len keys.
        kv_lengths: (batch,) integers, the valid keys of each item; batch is the first leading dimension.
        scale: a finite number, 1 / sqrt(head_dim) by default. 0 and negative are legal.
        return_lse: also return the log-sum-exp of the scaled, masked scores (natural logarithm).
        out: a float32 array of the result's shape, any strides, to write into; it is returned.
        num_threads: threads for this call; by default what `selfattn.threads` and `set_num_threads` say.

    Leading dimensions broadcast as in NumPy; all masks hold together (AND). A row with no key gives 0 and
    lse -inf. Masked keys and values reach nothing, even if they hold NaN or Inf. The result is the same to
    the last bit for any number of threads, in any batch, at any strides, on every instruction set with FMA.

    Returns:
        (..., num_heads, q_len, value_dim) float32; with return_lse also lse, (..., num_heads, q_len) float32.

    Raises:
        TypeError: a type or dtype that is not accepted.
        ValueError: shapes, lengths or numbers that do not fit.
    """
    arrays = {"query": query, "key": key, "value": value}
    leading, sizes = _sizes(arrays)
    options = _options(leading, sizes, mask, bias, causal, kv_lengths, scale, num_threads)
    shape = (*leading, sizes[0], sizes[2], sizes[5])
    target, result = _target(out, shape, (query, key, value, mask, bias))
    lse = np.empty(shape[:-1], np.float32) if return_lse else None
    _kernels.attention(query, key, value, target, mask, bias, lse, False, *options)
    if target is not result:
        result[...] = target
    return (result, lse) if return_lse else result


def attention_weights(
    query: Array,
    key: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    kv_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    rows: npt.ArrayLike | None = None,
    num_threads: int | None = None,
) -> Float32:
    """How much each query attends to each key: the softmax that `attention` applies to the values.

    Args:
        query, key, mask, bias, causal, kv_lengths, scale, num_threads: as in `attention`.
        rows: (n,) integers: only the weights of these queries.

    Returns:
        (..., num_heads, q_len or n, kv_len) float32. Rows sum to 1; masked keys and rows with no key are 0.
    """
    leading, sizes = _sizes({"query": query, "key": key})
    if rows is not None:
        chosen = _rows(rows, sizes[2])
        visible = _causal_rows(causal, chosen, sizes[2], sizes[3])
        _options(leading, sizes, mask, bias, causal, kv_lengths, scale, num_threads)
        mask, bias = _take_rows(mask, chosen), _take_rows(bias, chosen)
        mask = visible if mask is None else mask if visible is None else mask & visible
        query, causal = query[..., chosen, :], False
        leading, sizes = _sizes({"query": query, "key": key})
    options = _options(leading, sizes, mask, bias, causal, kv_lengths, scale, num_threads)
    weights = np.empty((*leading, sizes[0], sizes[2], sizes[3]), np.float32)
    _kernels.attention(query, key, None, weights, mask, bias, None, True, *options)
    return weights


# ---- shapes ----


def _sizes(arrays: dict[str, Array]) -> tuple[tuple[int, ...], tuple[int, int, int, int, int, int]]:
    """The broadcast leading shape, and (num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim)."""
    for name, array in arrays.items():
        _require_float32(name, array)
        if array.ndim < 3:
            length = "q_len" if name == "query" else "kv_len"
            raise ValueError(
                f"{name} has shape {array.shape}; it needs at least 3 dimensions, (heads, {length}, dim): "
                f"{name}[None] adds a head"
            )
    query, key, value = arrays["query"], arrays["key"], arrays.get("value")
    num_heads, q_len, head_dim = query.shape[-3:]
    num_kv_heads, kv_len, key_dim = key.shape[-3:]
    if head_dim != key_dim:
        raise ValueError(f"query has head_dim={head_dim} and key has head_dim={key_dim}; they must be equal")
    if head_dim == 0:
        raise ValueError("head_dim=0: query and key need at least 1 value per head")
    value_dim = 0
    if value is not None:
        value_heads, value_len, value_dim = value.shape[-3:]
        if value_len != kv_len:
            raise ValueError(f"key has kv_len={kv_len} and value has kv_len={value_len}; they must be equal")
        if value_heads != num_kv_heads:
            raise ValueError(
                f"key has num_kv_heads={num_kv_heads}, value num_kv_heads={value_heads}; they must be equal"
            )
    if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
        fix = (
            "give each a head" if not num_heads or not num_kv_heads else "every key head serves a whole group"
        )
        raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}; {fix}")
    leading = query.shape[:-3]
    if any(array.shape[:-3] != leading for array in arrays.values()):
        leading = _broadcast({name: array.shape[:-3] for name, array in arrays.items()})
    most = _kernels.MAX_LEADING
    if len(leading) > most:
        raise ValueError(f"query, key and value have {len(leading)} leading dimensions; at most {most} work")
    return leading, (num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim)


def _require_float32(name: str, array: object) -> None:
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"{name} is a {type(array).__name__}; it must be a NumPy array of float32")
    if array.dtype != np.float32 or not array.dtype.isnative:
        shown = array.dtype.str if array.dtype.kind == "f" and not array.dtype.isnative else array.dtype.name
        raise TypeError(f"{name} has dtype {shown}; attention takes float32: {name}.astype(np.float32)")


def _broadcast(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the leading dimensions do not broadcast together: {listed}") from None


# ---- masks and numbers ----


def _options(
    leading: tuple[int, ...],
    sizes: tuple[int, int, int, int, int, int],
    mask: Array | None,
    bias: Array | None,
    causal: Causal,
    kv_lengths: npt.ArrayLike | None,
    scale: float | None,
    num_threads: int | None,
) -> tuple[Any, ...]:
    """The last arguments of _kernels.attention, from kv_lengths on."""
    num_heads, _, q_len, kv_len, head_dim, _ = sizes
    if mask is not None or bias is not None:
        scores = (*leading, num_heads, q_len, kv_len)
        _require_broadcast("mask", mask, scores, np.bool_, "add floats as bias")
        _require_broadcast("bias", bias, scores, np.float32, "pass booleans as mask")
    alignment = _alignment(causal, q_len, kv_len)
    if kv_lengths is not None:
        kv_lengths = _lengths(kv_lengths, leading, kv_len)
    factor = 1.0 / math.sqrt(head_dim) if scale is None else as_number("scale", scale)
    threads = resolve_num_threads(num_threads)
    return kv_lengths, leading, sizes, factor, alignment, threads


def _require_broadcast(
    name: str, array: Array | None, scores: tuple[int, ...], dtype: Any, instead: str
) -> None:
    if array is None:
        return
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.dtype.isnative:
        have = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else f"type {type(array).__name__}"
        raise TypeError(f"{name} has {have}; it must be a NumPy array of {np.dtype(dtype).name} ({instead})")
    fits = array.ndim <= len(scores) and all(
        size in (1, full) for size, full in zip(array.shape[::-1], scores[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to {scores}, "
            "(..., num_heads, q_len, kv_len)"
        )


def _alignment(causal: object, q_len: int, kv_len: int) -> str | None:
    if isinstance(causal, bool | np.bool_):
        if causal and q_len != kv_len:
            choice = 'say causal="top_left" or causal="bottom_right"'
            raise ValueError(f"causal=True with q_len={q_len} and kv_len={kv_len} is ambiguous: {choice}")
        return "top_left" if causal else None
    if not isinstance(causal, str) or causal not in ("top_left", "bottom_right"):
        raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')
    return causal


def _lengths(kv_lengths: npt.ArrayLike, leading: tuple[int, ...], kv_len: int) -> npt.NDArray[np.int64]:
    lengths = np.asarray(kv_lengths)
    if lengths.size and lengths.dtype.kind not in "iu":
        raise TypeError(f"kv_lengths has dtype {lengths.dtype}; it must be integers")
    batch = leading[:1] or (1,)
    if lengths.shape not in (batch, leading[:1]):
        raise ValueError(f"kv_lengths has shape {lengths.shape}; one length for each item is {batch}")
    if lengths.size and (lengths.min() < 0 or lengths.max() > kv_len):
        wrong = lengths.min() if lengths.min() < 0 else lengths.max()
        raise ValueError(f"kv_lengths holds {wrong}; it must be between 0 and kv_len={kv_len}")
    return np.array(lengths.reshape(batch), np.int64)  # a copy: what was checked is what the kernels read


# ---- the output ----


def _target(
    out: Array | None, shape: tuple[int, ...], inputs: tuple[Array | None, ...]
) -> tuple[Float32, Float32]:
    """Where the kernel writes, and what is returned: they differ where `out` overlaps an input."""
    if out is None:
        fresh = np.empty(shape, np.float32)
        return fresh, fresh
    _require_float32("out", out)
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; it needs {shape}, (..., num_heads, q_len, value_dim)")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writable array, or none")
    if _overlaps_itself(out):
        raise ValueError(f"out has strides {out.strides} for shape {out.shape}: its elements share memory")
    if any(array is not None and np.may_share_memory(out, array) for array in inputs):
        return np.empty(shape, np.float32), out
    return out, out


def _overlaps_itself(array: Array) -> bool:
    extent = array.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < extent:
            return array.size > 0
        extent += stride * (size - 1)
    return False


# ---- chosen rows ----


def _rows(rows: npt.ArrayLike, q_len: int) -> npt.NDArray[np.intp]:
    chosen = np.asarray(rows)
    if chosen.ndim != 1:
        raise ValueError(f"rows has shape {chosen.shape}; it must be (n,)")
    if chosen.size and chosen.dtype.kind not in "iu":
        raise TypeError(f"rows has dtype {chosen.dtype}; it must be integers")
    for row in chosen:
        if not -q_len <= row < q_len:
            raise ValueError(f"rows holds {row}; it must be between 0 and q_len - 1 = {q_len - 1}")
    return chosen.astype(np.intp) % max(q_len, 1)


def _take_rows(array: Array | None, chosen: npt.NDArray[np.intp]) -> Array | None:
    has_rows = isinstance(array, np.ndarray) and array.ndim >= 2 and array.shape[-2] != 1
    return array[..., chosen, :] if array is not None and has_rows else array


def _causal_rows(causal: Causal, chosen: npt.NDArray[np.intp], q_len: int, kv_len: int) -> Array | None:
    """(n, kv_len): which keys the chosen queries see."""
    alignment = _alignment(causal, q_len, kv_len)
    if alignment is None:
        return None
    offset = kv_len - q_len if alignment == "bottom_right" else 0
    visible: Array = np.arange(kv_len) <= (chosen + offset)[:, None]
    return visible
