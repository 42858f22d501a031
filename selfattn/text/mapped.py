# SPDX-License-Identifier: Apache-2.0
"""Tensors where they lie in a safetensors file: the system reads what is looked at, and takes it back."""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class MappedFile:
    """A safetensors file that was found sound, mapped into memory, read-only.

    It may be removed, or replaced by a new file under its name: what is mapped stays. But in a file that is
    written to in place the tensors change, and to read where it was cut off ends the process. So no call
    reads what lies here, nobody is handed it, and `check` comes before it is copied.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._opened = os.fstat(file.fileno())
            self._start, self._entries = read_header(file)
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor of type F32: a view, but on a big-endian machine."""
        shape, (first, _) = self._entries[name]["shape"], self._entries[name]["data_offsets"]
        flat = np.frombuffer(self._memory, "<f4", math.prod(shape), self._start + first)
        return flat.reshape(shape).astype(np.float32, copy=False)

    def give_back(self) -> None:
        """What was read so far, to the system."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def check(self) -> None:
        """Raises ValueError when the file was written to since it was opened."""
        try:
            now = self._path.stat()
        except OSError:
            return
        if os.path.samestat(now, self._opened) and _version(now) != _version(self._opened):
            raise ValueError(
                f"{self._path} was written to after this model was loaded from it: load the model again, and "
                "replace the file of a model in use by renaming a new one"
            )


def read_header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and what the header says of each tensor, both as the file has them."""
    size = int.from_bytes(file.read(8), "little")
    return 8 + size, json.loads(file.read(size))


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
