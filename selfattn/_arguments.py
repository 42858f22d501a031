"""What the operators take: arrays in any form, sizes, masks and options; checked, and named where wrong."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfattn import _kernels
from selfattn._checks import as_integer, as_number, as_precision

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Protocol, TypedDict

    import numpy.typing as npt
    from typing_extensions import Buffer  # known to type checkers, installed or not

    class SupportsDLPack(Protocol):
        """An array of PyTorch, JAX, ... (https://dmlc.github.io/dlpack)."""

        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
        def __dlpack_device__(self) -> tuple[Any, int]: ...

    AnyArray = np.ndarray[Any, Any] | SupportsDLPack | Buffer

    class Options(TypedDict, total=False):
        """The options that the forms of attention share."""

        mask: AnyArray | None
        bias: AnyArray | None
        causal: Causal
        window: tuple[int | None, int | None] | None
        kv_lengths: npt.ArrayLike | None
        scale: float | None
        softcap: float | None
        alibi_slopes: npt.ArrayLike | None
        sinks: npt.ArrayLike | None
        dropout: float
        seed: int | None
        precision: Literal["bfloat16"] | None
        out: AnyArray | None
        num_threads: int | None


Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Causal = bool | Literal["top_left", "bottom_right"]
Sizes = tuple[int, int, int, int, int, int]  # num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_ACCEPTED = "float32, float64, float16 or bfloat16"
_SHORT = 5e8  # multiply-adds: some ten milliseconds
_ENDLESS = 1 << 40  # a window wider than any array is an open one


# ---- arrays in any form ----


def operands(*arrays: Any, names: tuple[str, ...] = ("query", "key", "value")) -> tuple[Array, ...]:
    """The arrays as NumPy's, all of one dtype out of the four; TypeError naming the one that is not."""
    for array in arrays:
        if type(array) is not np.ndarray or array.dtype is not _FLOAT32:
            break
    else:
        return arrays
    taken = tuple(as_array(name, x) for name, x in zip(names, arrays, strict=False))
    for name, array in zip(names, taken, strict=False):
        require_float(name, array)
        if array.dtype != taken[0].dtype:
            raise TypeError(
                f"{names[0]} has dtype {taken[0].dtype} and {name} has dtype {array.dtype}; they must be the "
                f"same: {name}.astype({names[0]}.dtype)"
            )
    return taken


def as_array(name: str, x: Any) -> Array:
    """`x` as a NumPy array of the machine's byte order; no copy is made unless its bytes lie the other way.

    Takes NumPy arrays, what speaks DLPack and lies on the CPU (arrays of PyTorch, JAX, ...), and what has the
    buffer protocol. TypeError for the rest: lists are not converted behind anyone's back.
    """
    array = x if type(x) is np.ndarray else _foreign(name, x)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _foreign(name: str, x: Any) -> Array:
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array; pass {name}.data, and what it hides as mask=")
        return x.view(np.ndarray)
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} requires grad, and this operator records none: {name}.detach()")
    if hasattr(x, "__dlpack__"):
        from selfattn._native.dlpack import from_dlpack

        try:
            array: Array = from_dlpack(x)
            return array
        except (TypeError, BufferError) as error:
            raise TypeError(f"{name}: {error}") from None
    try:
        return np.asarray(memoryview(x))
    except TypeError:
        what = "None" if x is None else f"a {type(x).__name__}"
        raise TypeError(
            f"{name} is {what}; it must be a NumPy array, or have __dlpack__ or the buffer protocol"
        ) from None


def require_float(name: str, array: Array) -> None:
    """TypeError unless the dtype is one that attention computes with."""
    if not _is_float(array.dtype):
        raise TypeError(
            f"{name} has dtype {array.dtype.name}; attention takes {_ACCEPTED}: {name}.astype(np.float32)"
        )


@lru_cache  # to ask a dtype for its name takes two microseconds
def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name in ("float32", "float64", "float16", "bfloat16")


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What inputs of that dtype are computed in; the dtype of the lse."""
    return _FLOAT64 if dtype == _FLOAT64 else _FLOAT32


# ---- sizes ----


def fitting(query: Any, key: Any, value: Any) -> tuple[tuple[Array, ...], tuple[tuple[int, ...], Sizes]]:
    """The three as `operands` gives them, with their `head_sizes`: quickly for those that fit as they are."""
    plain = _kernels.plain_sizes(query, key, value)
    if plain is None:
        query, key, value = operands(query, key, value)
        plain = head_sizes(query, key, value)
    return (query, key, value), plain


def head_sizes(query: Array, key: Array, value: Array | None = None) -> tuple[tuple[int, ...], Sizes]:
    """The leading shape, broadcast, and the sizes of (..., heads, length, dim) arrays that fit together."""
    shapes = query.shape, key.shape, key.shape if value is None else value.shape
    if len(shapes[0]) < 3 or len(shapes[1]) < 3 or len(shapes[2]) < 3:
        raise ValueError(_too_flat(shapes))
    num_heads, q_len, head_dim = shapes[0][-3:]
    num_kv_heads, kv_len, key_dim = shapes[1][-3:]
    value_heads, value_len, value_dim = shapes[2][-3:]
    if head_dim != key_dim:
        raise ValueError(f"query has head_dim={head_dim} and key has head_dim={key_dim}; they must be equal")
    if head_dim == 0:
        raise ValueError("head_dim=0: query and key need at least 1 value per head")
    if value_len != kv_len:
        raise ValueError(f"key has kv_len={kv_len} and value has kv_len={value_len}; they must be equal")
    if value_heads != num_kv_heads:
        raise ValueError(
            f"key has num_kv_heads={num_kv_heads}, value num_kv_heads={value_heads}; they must be equal"
        )
    require_heads(num_heads, num_kv_heads)
    leading = shapes[0][:-3]
    if shapes[1][:-3] != leading or shapes[2][:-3] != leading:
        leading = _broadcast(*(shape[:-3] for shape in shapes))
    most = _kernels.MAX_LEADING
    if len(leading) > most:
        raise ValueError(f"query, key and value have {len(leading)} leading dimensions; at most {most} work")
    return leading, (num_heads, num_kv_heads, q_len, kv_len, head_dim, 0 if value is None else value_dim)


def require_heads(num_heads: int, num_kv_heads: int) -> None:
    """ValueError unless every key head serves a whole group of query heads."""
    if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
        empty = num_heads == 0 or num_kv_heads == 0
        fix = "give each a head" if empty else "every key head serves a whole group"
        raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}; {fix}")


def _too_flat(shapes: tuple[tuple[int, ...], ...]) -> str:
    name, shape = next((n, s) for n, s in zip(("query", "key", "value"), shapes, strict=True) if len(s) < 3)
    length = "q_len" if name == "query" else "kv_len"
    return (
        f"{name} has shape {shape}; it needs at least 3 dimensions, (heads, {length}, dim): "
        f"{name}[None] adds a head"
    )


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = ", ".join(f"{name} {s}" for name, s in zip(("query", "key", "value"), shapes, strict=True))
        raise ValueError(f"the leading dimensions do not broadcast together: {listed}") from None


# ---- masks ----


def mask_and_bias(
    mask: AnyArray | None,
    bias: AnyArray | None,
    scores: tuple[int, ...],
    dtype: np.dtype[Any],
    meaning: str = "(..., num_heads, q_len, kv_len)",
) -> tuple[Array | None, Array | None]:
    """Both as arrays that broadcast to the scores' shape: bool, and the query's dtype or float32."""
    if mask is not None:
        mask = as_array("mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask has dtype {mask.dtype}; it must be bool (add floats as bias)")
        _require_broadcast("mask", mask, scores, meaning)
    if bias is not None:
        bias = as_array("bias", bias)
        if bias.dtype not in (dtype, _FLOAT32):
            accepted = "float32" if dtype == _FLOAT32 else f"{dtype} or float32"
            raise TypeError(f"bias has dtype {bias.dtype}; it must be {accepted} (pass booleans as mask)")
        _require_broadcast("bias", bias, scores, meaning)
    return mask, bias


def _require_broadcast(name: str, array: Array, scores: tuple[int, ...], meaning: str) -> None:
    sizes = zip(array.shape[::-1], scores[::-1], strict=False)
    if array.ndim > len(scores) or not all(size in (1, full) for size, full in sizes):
        raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to {scores}, {meaning}")


def alignment(causal: object, q_len: int, kv_len: int) -> str | None:
    """What the kernels call the diagonal; None without one."""
    if causal is False:
        return None
    if causal is True and q_len == kv_len:
        return "top_left"
    if isinstance(causal, bool | np.bool_):
        if causal and q_len != kv_len:
            choice = 'say causal="top_left" or causal="bottom_right"'
            raise ValueError(f"causal=True with q_len={q_len} and kv_len={kv_len} is ambiguous: {choice}")
        return "top_left" if causal else None
    if not isinstance(causal, str) or causal not in ("top_left", "bottom_right"):
        raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')
    return causal


# ---- numbers ----


def options(
    num_heads: int,
    head_dim: int,
    dtype: np.dtype[Any],
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    precision: str | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> tuple[float, dict[str, Any]]:
    """The scale, and by name those arguments of _kernels.attention that are not at their default."""
    factor = 1.0 / math.sqrt(head_dim) if scale is None else as_number("scale", scale, arithmetic(dtype))
    given = _dropout(dropout, seed)
    if window is None and softcap is None and alibi_slopes is None and sinks is None and precision is None:
        return factor, given
    if window is not None:
        given["window"] = _window(window)
    if softcap is not None:
        given["softcap"] = _softcap(softcap, arithmetic(dtype))
    if alibi_slopes is not None:
        slopes = given["alibi_slopes"] = _per_head("alibi_slopes", alibi_slopes, num_heads)
        _require_finite("alibi_slopes", slopes, arithmetic(dtype))
    if sinks is not None:
        logits = given["sinks"] = _per_head("sinks", sinks, num_heads)
        finite = np.where(logits == -np.inf, 0, logits)
        _require_finite("sinks", finite, arithmetic(dtype), "; -inf is no sink")
    if as_precision(precision, dtype):
        given["bfloat16"] = True
    return factor, given


def _dropout(dropout: float, seed: int | None) -> dict[str, Any]:
    if seed is None and type(dropout) is float and dropout == 0.0:  # the rule, and quickly
        return {}
    share = as_number("dropout", dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and less than 1")
    if seed is None and share:
        raise ValueError(f"dropout={dropout} needs seed=, an integer; attention_backward takes the same")
    number = 0 if seed is None else as_integer("seed", seed)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"seed={seed} must be between 0 and 2**64 - 1")
    return {"dropout": share, "seed": number} if share else {}


def _window(window: object) -> tuple[int | None, int | None]:
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window={window!r} must be a pair (left, right); None leaves a side open")
    left, right = (None if side is None else as_integer("window", side) for side in window)
    if min(left or 0, right or 0) < 0:
        raise ValueError(f"window={window!r} must not be negative; None leaves a side open")
    return tuple(None if side is None or side > _ENDLESS else side for side in (left, right))  # type: ignore[return-value]


def _softcap(softcap: float, computed_in: np.dtype[Any]) -> float:
    cap, least = as_number("softcap", softcap, computed_in), float(np.finfo(computed_in).tiny)
    if cap < least:
        raise ValueError(f"softcap={softcap} must be at least {least:.3g}; leave it out for none")
    return cap


def _per_head(name: str, x: npt.ArrayLike, num_heads: int) -> npt.NDArray[np.float64]:
    array = np.asarray(x) if isinstance(x, tuple | list) else as_array(name, x)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}; it must be real numbers")
    if array.shape != (num_heads,):
        raise ValueError(f"{name} has shape {array.shape}; one number for each head is {(num_heads,)}")
    return np.array(array, np.float64, order="C")


def _require_finite(name: str, x: npt.NDArray[np.float64], computed_in: np.dtype[Any], fix: str = "") -> None:
    largest = float(np.finfo(computed_in).max)
    for head in np.flatnonzero(~(np.abs(x) <= largest))[:1]:
        raise ValueError(f"{name}[{head}]={x[head]} must be finite in {computed_in}, at most {largest}{fix}")


# ---- the output ----


def target(
    out: AnyArray | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    inputs: tuple[Array | None, ...] = (),
    work: float = math.inf,
) -> Array:
    """The array to compute into; ValueError or TypeError unless `out` can take the result.

    It is `out` itself only if no input lies there and the call is so short (`work`, multiply-adds) that it
    need not listen for Ctrl-C; otherwise a fresh array: an error half way must leave `out` as it was.
    """
    if out is not None:
        there = _writable(out)
        direct = there is out and there.dtype == dtype and there.shape == shape and work <= _SHORT
        if direct and _kernels.lies_apart(there, inputs):  # the rule, and quickly
            return there
        if there.dtype.newbyteorder("=") != dtype:
            raise TypeError(f"out has dtype {there.dtype}; the result has {dtype}, as the query")
        if there.shape != shape:
            raise ValueError(f"out has shape {there.shape}; it needs {shape}, the shape of the result")
        if not there.flags.writeable:
            raise ValueError("out is read-only; pass a writable array, or none")
        if _overlaps_itself(there):
            raise ValueError(f"out has strides {there.strides} for shape {shape}: its elements share memory")
        overlaps = any(array is not None and np.may_share_memory(there, array) for array in inputs)
        if direct and not overlaps:
            return there
    return np.empty(shape, dtype)


def finish(result: Array, out: AnyArray | None) -> Any:
    """What the caller gets: the result, or `out` after the result went into it."""
    if out is None or result is out:
        return result
    np.copyto(_writable(out), result)
    return out


def _writable(out: AnyArray) -> Array:
    """`out` as it lies, in either byte order."""
    return out if type(out) is np.ndarray else _foreign("out", out)


def _overlaps_itself(array: Array) -> bool:
    extent = array.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < extent:
            return array.size > 0
        extent += stride * (size - 1)
    return False
