# SPDX-License-Identifier: Apache-2.0
"""Gradients by their definition, and options of attention to take them through."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from support.accuracy import assert_as_exact_as_numpy, exactly, widened

import selfattn
from selfattn import reference

QKV = ("query", "key", "value")
EVERY = (*QKV, "bias", "sinks", "alibi_slopes")
ENOUGH = 96  # numbers for their error not to be luck
LOOSELY = {2: 3e-2, 4: 1e-4, 8: 1e-11}  # for inputs of that many bytes


def central_differences(loss: Callable[[NDArray], float], at: NDArray, step: float = 1e-6) -> NDArray:
    """The gradient of a loss of an array, number by number; wrong by about step**2 and 1e-16 / step."""
    at = np.asarray(at, np.float64)
    gradient = np.zeros_like(at)
    for position in np.ndindex(at.shape):
        there = [at.copy(), at.copy()]
        there[0][position] += step
        there[1][position] -= step
        gradient[position] = (loss(there[0]) - loss(there[1])) / (2 * step)
    return gradient


def assert_is_gradient(loss: Callable[..., float], arguments: dict[str, Any], gradients: Any) -> None:
    """gradients: of the loss, for the first of the named arguments, in order."""
    for (name, argument), gradient in zip(arguments.items(), gradients, strict=False):
        expected = central_differences(lambda x, name=name: loss(**(arguments | {name: x})), argument)
        assert gradient.shape == argument.shape, name
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-8, err_msg=name)


def options_of(
    rng: np.random.Generator,
    *,
    batch: int = 2,
    heads: int = 4,
    q_len: int = 5,
    kv_len: int = 7,
    dtype: Any = np.float64,
) -> dict[str, dict[str, Any]]:
    """Every option by itself, and all of them together; some query of some of them has no key."""
    scores = (batch, heads, q_len, kv_len)
    mask = rng.random(scores) < 0.7
    mask[0, 0, 0] = False
    bias = rng.standard_normal(scores[1:]).astype(dtype)
    bias[0, 1:, 2:4] = -np.inf
    lengths = np.maximum(kv_len - 2 * np.arange(batch) - 1, 0)
    alone: dict[str, dict[str, Any]] = {
        "mask": {"mask": mask},
        "bias": {"bias": bias},
        "scale": {"scale": -0.4},
        "top_left": {"causal": "top_left"},
        "bottom_right": {"causal": "bottom_right"},
        "window": {"window": (3, 1)},
        "kv_lengths": {"kv_lengths": lengths},
        "softcap": {"softcap": 1.5},
        "alibi": {"alibi_slopes": selfattn.alibi_slopes(heads)},
        "sinks": {"sinks": np.linspace(-2, 2, heads)},
        "dropout": {"dropout": 0.3, "seed": 2**63 + 12345},
    }
    together: dict[str, Any] = {}
    for option in alone.values():
        together |= option
    return {"no option": {}} | alone | {"all together": together}


OPTIONS = tuple(options_of(np.random.default_rng(0)))


def needed(options: dict[str, Any]) -> tuple[str, ...]:
    """All gradients that there are with these options."""
    return (*QKV, *(name for name in EVERY[3:] if name in options))


def backward(
    grad_out: NDArray, query: NDArray, key: NDArray, value: NDArray, *, need: Any = None, **options: Any
) -> dict[str, NDArray]:
    """Forward and backward, the gradients by name."""
    names = needed(options) if need is None else need
    out, lse = selfattn.attention(query, key, value, **options, return_lse=True)
    grads = selfattn.attention_backward(grad_out, query, key, value, out, lse, **options, need=names)
    return dict(zip(names, grads, strict=True))


def grad_like_out(rng: np.random.Generator, query: NDArray, key: NDArray, value: NDArray) -> NDArray:
    """A gradient of the output, (..., num_heads, q_len, value_dim), in the query's dtype."""
    leading = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    shape = (*leading, *query.shape[-3:-1], value.shape[-1])
    return rng.standard_normal(shape).astype(query.dtype)


def _reference(grad_out: ArrayLike, *arrays: NDArray, need: Any, rounded: Any, **options: Any) -> Any:
    """Forward and backward in the reference, where the output is of the dtype `rounded`."""
    out, lse = reference.attention(*arrays, **options, return_lse=True)
    return reference.attention_backward(grad_out, *arrays, out.astype(rounded), lse, need=need, **options)


def check_backward(
    grad_out: NDArray, query: NDArray, key: NDArray, value: NDArray, **options: Any
) -> dict[str, NDArray]:
    """All gradients against the reference in a wider dtype: as exact as the reference in the same one."""
    ours, names, dtype = backward(grad_out, query, key, value, **options), needed(options), query.dtype
    arrays = grad_out, query, key, value
    naive = _reference(*arrays, need=names, rounded=dtype, **options)
    wide = np.longdouble if dtype == np.float64 else np.float64
    exact = exactly(_reference, *arrays, need=names, rounded=wide, **options)
    arguments = {"query": query, "key": key, "value": value, "bias": options.get("bias")}
    for name, same, wider in zip(names, naive, exact, strict=True):
        argument = arguments.get(name)
        expected = np.dtype(np.promote_types(dtype, np.float32) if argument is None else argument.dtype)
        assert ours[name].dtype == expected, name
        assert_as_exact(ours[name], same.astype(expected), wider, LOOSELY[dtype.itemsize])
    return ours


def assert_as_exact(ours: NDArray, naive: NDArray, exact: NDArray, loosely: float) -> None:
    """As assert_as_exact_as_numpy, for sums whose terms cancel: what NumPy's error may hide may be 0.

    The error of a few numbers is luck, ours as NumPy's: those may differ by `loosely` times the largest.
    """
    if exact.size < ENOUGH:
        atol = loosely * float(np.abs(exact).max(initial=0))
        np.testing.assert_allclose(widened(ours), widened(exact), rtol=0, atol=atol)
        return
    may_be_zero = np.abs(exact) <= 2 * np.abs(widened(naive) - exact).max()
    assert_as_exact_as_numpy(np.where((ours == 0) & may_be_zero, naive, ours), naive, exact)
