# SPDX-License-Identifier: Apache-2.0
"""What a call takes in memory, and other figures that only a new process can tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# The arrays are filled before the first look at the high-water mark, so it then moves by the call alone. On
# Linux it is read from /proc: that of getrusage begins with what the process that started this one had.
ONE_CALL = """
import re, resource, sys, time
import numpy as np, selfattn

def highest():
    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

rng = np.random.default_rng(0)
query, key, value = (np.empty({shape}, np.float32) for _ in range(3))
for array in (query, key, value):
    rng.standard_normal(out=array, dtype=np.float32)
before, start = highest(), time.perf_counter()
out = selfattn.attention(query, key, value, num_threads={threads})
seconds = time.perf_counter() - start
print((highest() - before - out.nbytes) / 2**20, seconds)
"""


def printed_in_new_process(code: str) -> str:
    command = [sys.executable, "-P", "-c", code]  # what is installed, not what lies in this directory
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def in_new_process(code: str) -> float:
    """The number that the code prints in an interpreter of its own."""
    return float(printed_in_new_process(code))


def one_call(shape: Sequence[int], threads: int | None = None) -> tuple[float, float]:
    """The first call of a process on (..., heads, length, head_dim): MiB besides the arrays at its highest
    point, and seconds.
    """
    numbers = printed_in_new_process(ONE_CALL.format(shape=tuple(shape), threads=threads)).split()
    return float(numbers[0]), float(numbers[1])


def extra_megabytes(shape: Sequence[int], threads: int | None = None) -> float:
    """MiB besides the arrays at the highest point of a call on (..., heads, length, head_dim)."""
    return one_call(shape, threads)[0]
