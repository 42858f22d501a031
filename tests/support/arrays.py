# SPDX-License-Identifier: Apache-2.0
"""Arrays for the operator's tests: queries, keys and values, and the same numbers lying differently."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def qkv(
    rng: np.random.Generator,
    *,
    batch: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    q_len: int = 5,
    kv_len: int | None = None,
    dim: int = 16,
    value_dim: int | None = None,
) -> tuple[Array, Array, Array]:
    """Normal query (batch, heads, q_len, dim), key and value (batch, kv_heads, kv_len, dim or value_dim)."""
    kv_heads, kv_len, value_dim = (
        heads if kv_heads is None else kv_heads,
        q_len if kv_len is None else kv_len,
        dim if value_dim is None else value_dim,
    )
    shapes = (batch, heads, q_len, dim), (batch, kv_heads, kv_len, dim), (batch, kv_heads, kv_len, value_dim)
    query, key, value = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return query, key, value


def _filler(array: NDArray) -> object:
    """What lies between the elements of a strided array: reading it shows in the result."""
    return np.nan if array.dtype.kind == "f" else True


def _every_other(array: NDArray) -> NDArray:
    room = np.full((*array.shape[:-1], 2 * array.shape[-1]), _filler(array), array.dtype)
    room[..., ::2] = array
    return room[..., ::2]


def _sliced(array: NDArray) -> NDArray:
    room = np.full([n + 3 for n in array.shape], _filler(array), array.dtype)
    inside = room[tuple(slice(1, n + 1) for n in array.shape)]
    inside[...] = array
    return inside


def _rows_on_pages(array: NDArray) -> NDArray:
    """Rows a multiple of 4096 bytes apart: they meet in a few sets of the caches."""
    pages = -(-array.shape[-1] * array.itemsize // 4096)
    room = np.full((*array.shape[:-1], pages * 4096 // array.itemsize), _filler(array), array.dtype)
    room[..., : array.shape[-1]] = array
    return room[..., : array.shape[-1]]


def _negative(array: NDArray) -> NDArray:
    return np.flip(np.flip(array).copy())


def _misaligned(array: NDArray) -> NDArray:
    room = np.zeros(array.nbytes + 1, np.uint8)
    off_by_one = room[1:].view(array.dtype).reshape(array.shape)
    off_by_one[...] = array
    return off_by_one


def _packed_record(array: NDArray) -> NDArray:
    """Strides that are no multiple of the item's size: a field of a packed record."""
    room = np.zeros(array.shape, np.dtype([("pad", np.uint8), ("x", array.dtype)]))
    room["x"] = array
    return room["x"]


def _rows_in_records(array: NDArray) -> NDArray:
    """Rows side by side, from row to row no multiple of the item's size."""
    record = np.dtype([("pad", np.uint8), ("row", array.dtype, array.shape[-1:])])
    room = np.zeros(array.shape[:-1], record)
    room["row"] = array
    return room["row"]


def _read_only(array: NDArray) -> NDArray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[NDArray], NDArray]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "heads_inside": lambda a: np.ascontiguousarray(a.swapaxes(-2, -3)).swapaxes(-2, -3),
    "rows_on_pages": _rows_on_pages,
    "negative": _negative,
    "every_other": _every_other,
    "sliced": _sliced,
    "misaligned": _misaligned,
    "packed_record": _packed_record,
    "rows_in_records": _rows_in_records,
    "read_only": _read_only,
}
