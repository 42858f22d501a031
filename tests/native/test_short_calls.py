# SPDX-License-Identifier: Apache-2.0
"""What makes short calls quick: arrays that fit as they are, and the GIL, which they keep."""

import subprocess
import sys

import numpy as np
import pytest

from selfattn._native import operator as _operator
from selfattn.attention.arrays import head_sizes

CODE = """
import sys, threading
import numpy as np
import selfattn

def others_get_on(shape, calls, **options):
    arrays, out = [np.ones(shape, np.float32)] * 3, np.empty(shape, np.float32)
    gate, passed = threading.Semaphore(0), []
    other = threading.Thread(target=lambda: [gate.acquire(), passed.append(True)])
    other.start()
    gate.release()
    for _ in range(calls):
        selfattn.attention(*arrays, out=out, num_threads=2, **options)
    result = bool(passed)
    other.join()
    return result

sys.setswitchinterval(86400)
assert not others_get_on((1, 1, 8, 16), 3000)
assert not others_get_on((1, 2, 48, 64), 1000, causal=True)
assert others_get_on((1, 8, 1024, 64), 5)
assert others_get_on((1, 8, 1024, 64), 5, dropout=0.5, seed=1)
"""


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL")
def test_a_short_call_keeps_the_gil_and_a_long_one_releases_it():
    """Nobody takes the GIL from its holder within a day: another thread gets on only where it is released."""
    process = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr


def test_plain_sizes_are_those_that_a_closer_look_finds(rng):
    """What fits as it is passes without the checks that name what is wrong, and nothing else does."""
    plain = 0
    for _ in range(3000):
        shapes = [list(shape) for shape in ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6))]
        for _ in range(rng.integers(3)):
            shape = shapes[rng.integers(3)]
            shape[rng.integers(4)] = int(rng.choice([0, 1, 2, 3, 8]))
        arrays = [np.zeros(shape[rng.integers(2) * (rng.random() < 0.1) :], np.float16) for shape in shapes]
        try:
            expected = head_sizes(*arrays)
        except ValueError:
            expected = None
        found = _operator.plain_sizes(*arrays)
        plain += found is not None
        alike = len({array.shape[:-3] for array in arrays}) == 1
        assert found == (expected if alike else None), shapes
    assert plain > 500


@pytest.mark.parametrize("dtype", ["int8", "int32", ">f4", "complex64", "bool"])
def test_plain_sizes_of_other_dtypes(dtype):
    arrays = [np.zeros((1, 2, 3), dtype)] * 3
    assert _operator.plain_sizes(*arrays) is None
    floats = [np.zeros((1, 2, 3), np.float32)] * 3
    assert _operator.plain_sizes(*floats[:2], arrays[0]) is None
    assert _operator.plain_sizes(*floats[:2], floats[0].tolist()) is None
