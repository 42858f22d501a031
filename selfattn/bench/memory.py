"""What a call takes in memory, and other figures that only a new process can tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# The arrays are filled before the first look at the high-water mark, so it then moves by the call alone. On
# Linux it is read from /proc: that of getrusage begins with what the process that started this one had.
ONE_CALL = """
import re, resource, sys
import numpy as np, selfattn

def highest():
    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

rng = np.random.default_rng(0)
query, key, value = (np.empty({shape}, np.float32) for _ in range(3))
for array in (query, key, value):
    rng.standard_normal(out=array, dtype=np.float32)
before = highest()
out = selfattn.attention(query, key, value, num_threads={threads})
print((highest() - before - out.nbytes) / 2**20)
"""


def in_new_process(code: str) -> float:
    """The number that the code prints in an interpreter of its own."""
    command = [sys.executable, "-P", "-c", code]  # what is installed, not what lies in this directory
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603


def extra_megabytes(shape: Sequence[int], threads: int | None = None) -> float:
    """MiB besides the arrays at the highest point of a call on (..., heads, length, head_dim)."""
    return in_new_process(ONE_CALL.format(shape=tuple(shape), threads=threads))
