# SPDX-License-Identifier: Apache-2.0
"""The arrays of the operators: in any form, with the sizes that fit together; and the target of a result."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._native import operator as _operator

if TYPE_CHECKING:
    from typing import Protocol

    from typing_extensions import Buffer  # known to type checkers, installed or not

    class SupportsDLPack(Protocol):
        """An array of PyTorch, JAX, ... (https://dmlc.github.io/dlpack)."""

        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
        def __dlpack_device__(self) -> tuple[Any, int]: ...

    AnyArray = np.ndarray[Any, Any] | SupportsDLPack | Buffer

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Sizes = tuple[int, int, int, int, int, int]  # num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim

FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_ACCEPTED = "float32, float64, float16 or bfloat16"
MOST_DIRECT_WORK = 5e8  # multiply-adds of a call that writes into out= itself: about ten milliseconds


# ---- arrays in any form ----


def operands(*arrays: Any, names: tuple[str, ...] = ("query", "key", "value")) -> tuple[Array, ...]:
    """The arrays as NumPy's, all of one dtype out of the four; TypeError naming the one that is not."""
    for array in arrays:
        if type(array) is not np.ndarray or array.dtype is not FLOAT32:
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
    return _FLOAT64 if dtype == _FLOAT64 else FLOAT32


# ---- sizes ----


def fitting(query: Any, key: Any, value: Any) -> tuple[tuple[Array, ...], tuple[tuple[int, ...], Sizes]]:
    """The three as `operands` gives them, with their `head_sizes`: quickly for those that fit as they are."""
    plain = _operator.plain_sizes(query, key, value)
    if plain is None:
        query, key, value = operands(query, key, value)
        plain = head_sizes(query, key, value)
    return (query, key, value), plain


def fitting_keys(query: Any, key: Any) -> tuple[tuple[Array, Array], tuple[tuple[int, ...], Sizes]]:
    """The same without a value."""
    plain = _operator.plain_sizes(query, key, key)
    if plain is None:
        query, key = operands(query, key)
        return (query, key), head_sizes(query, key)
    leading, sizes = plain
    return (query, key), (leading, (*sizes[:5], 0))


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
    most = _operator.MAX_LEADING
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
        direct = there is out and there.dtype == dtype and there.shape == shape and work <= MOST_DIRECT_WORK
        if direct and _operator.lies_apart(there, inputs):  # the common case, and quickly
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
