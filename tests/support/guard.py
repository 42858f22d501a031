# SPDX-License-Identifier: Apache-2.0
"""Arrays that touch a page no one may read or write: one byte too far ends the process."""

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PAGE, _NO_ACCESS = mmap.PAGESIZE, 0


def guarded(array: NDArray, *, at_end: bool) -> NDArray:
    """A contiguous copy whose last byte (or first, when not at_end) lies beside a forbidden page."""
    body = -(-max(array.nbytes, 1) // _PAGE) * _PAGE
    memory = mmap.mmap(-1, body + 2 * _PAGE)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    for forbidden in (address, address + _PAGE + body):
        if _mprotect(forbidden, _PAGE, _NO_ACCESS) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = _PAGE + (body - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy
