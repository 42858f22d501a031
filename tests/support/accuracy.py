# SPDX-License-Identifier: Apache-2.0
"""How close is close enough: against a wider dtype, at most twice the error of naive NumPy."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

import selfattn
from selfattn import reference

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)  # of the operator
ROUNDING = {2: 1e-4, 4: 1e-7, 8: 2e-16}  # of a float of that many bytes
if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
    ROUNDING[8] = 1e-14  # no wider dtype here: two float64 computations are compared


def assert_as_exact_as_numpy(actual: ArrayLike, naive: ArrayLike, exact: ArrayLike) -> None:
    """The root mean square of actual - exact is at most twice that of naive - exact, plus one rounding.

    The largest error of a few hundred numbers is luck, NumPy's as ours: it has room for eight times. NaN and
    the infinities must stand where they stand in `exact`. A result that is zero where the naive one is not is
    a kernel that skipped work, not one that rounded.
    """
    actual, naive, exact = np.asarray(actual), np.asarray(naive), np.asarray(exact)
    rounding = ROUNDING[actual.itemsize]
    actual, naive = widened(actual), widened(naive)
    assert actual.shape == exact.shape, f"shape {actual.shape}, expected {exact.shape}"
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact), "NaN in the wrong places")
    infinite = np.isinf(exact)
    np.testing.assert_array_equal(actual[infinite], exact[infinite], "infinities in the wrong places")
    finite = np.isfinite(exact)
    if not finite.any():
        return
    actual, naive, exact = actual[finite], naive[finite], exact[finite]
    skipped = np.count_nonzero((actual == 0) & (naive != 0))
    assert skipped <= 0.01 * actual.size, f"{skipped} of {actual.size} results are zero and should not be"
    for times, size in ((2, _root_mean_square), (8, _largest)):
        error, naive_error = size(actual - exact), size(naive - exact)
        bound = times * naive_error + rounding * size(exact)
        assert error <= bound, (
            f"{size.__name__} error {error:.3g} > {bound:.3g}; NumPy's is {naive_error:.3g}"
        )


def _root_mean_square(x: NDArray) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))


def _largest(x: NDArray) -> float:
    return float(np.abs(x).max())


def assert_same_bits(actual: NDArray, expected: NDArray) -> None:
    """Equal to the last bit; -0.0 and 0.0 differ, and so do two NaNs of different bits."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    bits = np.dtype(f"u{actual.itemsize}")
    same = np.ascontiguousarray(actual).view(bits) == np.ascontiguousarray(expected).view(bits)
    assert same.all(), f"{same.size - np.count_nonzero(same)} of {same.size} results differ in their bits"


def widened(argument: Any, dtype: Any = np.float64) -> Any:
    """The argument in the wider dtype, if it is an array of floats (bfloat16 among them)."""
    is_float = isinstance(argument, np.ndarray) and (
        argument.dtype.kind == "f" or argument.dtype.name == "bfloat16"
    )
    return argument.astype(dtype) if is_float else argument


def check_attention(query: NDArray, key: NDArray, value: NDArray, **options: Any) -> NDArray:
    """Runs attention() and holds output and lse against the reference in the same and in a wider dtype."""
    actual = selfattn.attention(query, key, value, **options, return_lse=True)
    options.pop("num_threads", None)
    options.pop("out", None)
    naive = reference.attention(query, key, value, **options, return_lse=True)
    exact = exactly(reference.attention, query, key, value, **options, return_lse=True)
    dtypes = query.dtype, np.float64 if query.dtype == np.float64 else np.float32
    for ours, same, wide, dtype in zip(actual, naive, exact, dtypes, strict=True):
        assert ours.dtype == dtype
        assert_as_exact_as_numpy(ours, same.astype(dtype), wide)
    return actual[0]


def exactly(function: Callable[..., Any], *arrays: NDArray, **options: Any) -> Any:
    """What a function of the reference gives when all floats are float64, or longdouble where they are."""
    dtype = np.longdouble if arrays[0].dtype == np.float64 else np.float64
    wide = {name: widened(option, dtype) for name, option in options.items()}
    return function(*(widened(array, dtype) for array in arrays), **wide)
