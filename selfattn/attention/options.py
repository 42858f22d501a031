"""The options of the operators: masks, the diagonal and numbers; checked, and named where wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfattn._checks import as_integer, as_number, as_precision
from selfattn.attention.arrays import FLOAT32, Array, arithmetic, as_array

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import TypedDict

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray

    class Options(TypedDict, total=False):
        """The options that the forms of attention share."""

        mask: AnyArray | None
        bias: AnyArray | None
        causal: Causal
        window: tuple[int | None, int | None] | None
        kv_lengths: npt.ArrayLike | None
        scale: float | None
        softcap: float | None
        alibi_slopes: npt.ArrayLike | None
        sinks: npt.ArrayLike | None
        dropout: float
        seed: int | None
        precision: Literal["bfloat16"] | None
        out: AnyArray | None
        num_threads: int | None


Causal = bool | Literal["top_left", "bottom_right"]

_ENDLESS = 1 << 40  # a window wider than any array is an open one

# ---- masks ----


def mask_and_bias(
    mask: AnyArray | None,
    bias: AnyArray | None,
    scores: tuple[int, ...],
    dtype: np.dtype[Any],
    meaning: str = "(..., num_heads, q_len, kv_len)",
) -> tuple[Array | None, Array | None]:
    """Both as arrays that broadcast to the scores' shape: bool, and the query's dtype or float32."""
    if mask is not None:
        mask = as_array("mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask has dtype {mask.dtype}; it must be bool (add floats as bias)")
        _require_broadcast("mask", mask, scores, meaning)
    if bias is not None:
        bias = as_array("bias", bias)
        if bias.dtype not in (dtype, FLOAT32):
            accepted = "float32" if dtype == FLOAT32 else f"{dtype} or float32"
            raise TypeError(f"bias has dtype {bias.dtype}; it must be {accepted} (pass booleans as mask)")
        _require_broadcast("bias", bias, scores, meaning)
    return mask, bias


def _require_broadcast(name: str, array: Array, scores: tuple[int, ...], meaning: str) -> None:
    sizes = zip(array.shape[::-1], scores[::-1], strict=False)
    if array.ndim > len(scores) or not all(size in (1, full) for size, full in sizes):
        raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to {scores}, {meaning}")


def alignment(causal: object, q_len: int, kv_len: int) -> str | None:
    """What the kernels call the diagonal; None without one."""
    if causal is False:
        return None
    if causal is True and q_len == kv_len:
        return "top_left"
    if isinstance(causal, bool | np.bool_):
        if causal and q_len != kv_len:
            choice = 'say causal="top_left" or causal="bottom_right"'
            raise ValueError(f"causal=True with q_len={q_len} and kv_len={kv_len} is ambiguous: {choice}")
        return "top_left" if causal else None
    if not isinstance(causal, str) or causal not in ("top_left", "bottom_right"):
        raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')
    return causal


# ---- numbers ----


def options(
    num_heads: int,
    head_dim: int,
    dtype: np.dtype[Any],
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    precision: str | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> tuple[float, dict[str, Any]]:
    """The scale, and by name those arguments of _kernels.attention that are not at their default."""
    factor = 1.0 / math.sqrt(head_dim) if scale is None else as_number("scale", scale, arithmetic(dtype))
    given = _dropout(dropout, seed)
    if window is None and softcap is None and alibi_slopes is None and sinks is None and precision is None:
        return factor, given
    if window is not None:
        given["window"] = _window(window)
    if softcap is not None:
        given["softcap"] = _softcap(softcap, arithmetic(dtype))
    if alibi_slopes is not None:
        slopes = given["alibi_slopes"] = _per_head("alibi_slopes", alibi_slopes, num_heads)
        _require_finite("alibi_slopes", slopes, arithmetic(dtype))
    if sinks is not None:
        logits = given["sinks"] = _per_head("sinks", sinks, num_heads)
        finite = np.where(logits == -np.inf, 0, logits)
        _require_finite("sinks", finite, arithmetic(dtype), "; -inf is no sink")
    if as_precision(precision, dtype):
        given["bfloat16"] = True
    return factor, given


def _dropout(dropout: float, seed: int | None) -> dict[str, Any]:
    if seed is None and type(dropout) is float and dropout == 0.0:  # the rule, and quickly
        return {}
    share = as_number("dropout", dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and less than 1")
    if seed is None and share:
        raise ValueError(f"dropout={dropout} needs seed=, an integer; attention_backward takes the same")
    number = 0 if seed is None else as_integer("seed", seed)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"seed={seed} must be between 0 and 2**64 - 1")
    return {"dropout": share, "seed": number} if share else {}


def _window(window: object) -> tuple[int | None, int | None]:
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window={window!r} must be a pair (left, right); None leaves a side open")
    left, right = (None if side is None else as_integer("window", side) for side in window)
    if min(left or 0, right or 0) < 0:
        raise ValueError(f"window={window!r} must not be negative; None leaves a side open")
    return tuple(None if side is None or side > _ENDLESS else side for side in (left, right))  # type: ignore[return-value]


def _softcap(softcap: float, computed_in: np.dtype[Any]) -> float:
    cap, least = as_number("softcap", softcap, computed_in), float(np.finfo(computed_in).tiny)
    if cap < least:
        raise ValueError(f"softcap={softcap} must be at least {least:.3g}; leave it out for none")
    return cap


def _per_head(name: str, x: npt.ArrayLike, num_heads: int) -> npt.NDArray[np.float64]:
    array = np.asarray(x) if isinstance(x, tuple | list) else as_array(name, x)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}; it must be real numbers")
    if array.shape != (num_heads,):
        raise ValueError(f"{name} has shape {array.shape}; one number for each head is {(num_heads,)}")
    return np.array(array, np.float64, order="C")


def _require_finite(name: str, x: npt.NDArray[np.float64], computed_in: np.dtype[Any], fix: str = "") -> None:
    largest = float(np.finfo(computed_in).max)
    for head in np.flatnonzero(~(np.abs(x) <= largest))[:1]:
        raise ValueError(f"{name}[{head}]={x[head]} must be finite in {computed_in}, at most {largest}{fix}")
