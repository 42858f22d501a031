"""How close is close enough: against float64, at most twice the error of naive NumPy in float32."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import selfattn
from selfattn import reference

ROUNDING = 1e-7  # of float32


def assert_as_exact_as_numpy(actual: ArrayLike, naive: ArrayLike, exact: ArrayLike) -> None:
    """The root mean square of actual - exact is at most twice that of naive - exact, plus one rounding.

    The largest error of a few hundred numbers is luck, NumPy's as ours: it has room for eight times. NaN and
    the infinities must stand where they stand in `exact`. A result that is zero where the naive one is not is
    a kernel that skipped work, not one that rounded.
    """
    actual, naive, exact = np.asarray(actual), np.asarray(naive), np.asarray(exact)
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
        bound = times * naive_error + ROUNDING * size(exact)
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
    same = np.ascontiguousarray(actual).view(np.uint32) == np.ascontiguousarray(expected).view(np.uint32)
    assert same.all(), f"{same.size - np.count_nonzero(same)} of {same.size} results differ in their bits"


def widened(argument: Any) -> Any:
    """The argument in float64, if it is an array of floats."""
    is_float = isinstance(argument, np.ndarray) and argument.dtype.kind == "f"
    return argument.astype(np.float64) if is_float else argument


def check_attention(query: NDArray, key: NDArray, value: NDArray, **options: Any) -> NDArray:
    """Runs attention() and holds output and lse against the reference in float32 and float64."""
    actual = selfattn.attention(query, key, value, **options, return_lse=True)
    options.pop("num_threads", None)
    options.pop("out", None)
    wide = {name: widened(option) for name, option in options.items()}
    naive = reference.attention(query, key, value, **options, return_lse=True)
    exact = reference.attention(widened(query), widened(key), widened(value), **wide, return_lse=True)
    for ours, float32, float64 in zip(actual, naive, exact, strict=True):
        assert ours.dtype == np.float32
        assert_as_exact_as_numpy(ours, float32, float64)
    return actual[0]
