# SPDX-License-Identifier: Apache-2.0
"""Inputs that are the same numbers on every machine, and the hash of a result."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


class Numbers:
    """Random arrays made of integers and powers of two, of a sequence that the name of a case begins."""

    def __init__(self, name: str) -> None:
        self.rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    def normal(self, *shape: int, dtype: DTypeLike = np.float32, scale: float = 1.0) -> Array:
        """Bell-shaped with a standard deviation of about `scale`, a power of two."""
        steps = self.rng.integers(-512, 512, (4, *shape)).sum(axis=0).astype(np.float64)
        if np.dtype(dtype) == np.float64:
            steps += self.rng.integers(-(2**30), 2**30, shape) * 2.0**-31
        return (steps * (scale / 512)).astype(dtype)

    def mask(self, *shape: int, share: float = 0.75) -> Array:
        """True in about this share of the places."""
        return self.rng.integers(0, 4096, shape) < share * 4096

    def integers(self, low: int, high: int, *shape: int) -> Array:
        return self.rng.integers(low, high, shape)


def fingerprint(result: object) -> str:
    """SHA-256 of an array, or of a tree of them (tuples, lists, dicts), with shapes and dtypes."""
    digest = hashlib.sha256()
    _add(digest.update, result)
    return digest.hexdigest()


def _add(update: Callable[[bytes], object], value: Any) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            update(f"{name}:".encode())
            _add(update, part)
    elif isinstance(value, tuple | list):
        update(f"{len(value)}[".encode())
        for part in value:
            _add(update, part)
    elif value is None or isinstance(value, str | bool | int):
        update(f"{value!r};".encode())
    else:
        array = np.array(value, order="C")  # a copy
        if array.dtype.kind != "O" and array.dtype.name not in ("bool", "int8", "int64"):
            array[array != array] = np.nan
        update(f"{array.dtype.name}{array.shape}".encode())
        update(array.tobytes())
