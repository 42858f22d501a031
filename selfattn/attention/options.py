# SPDX-License-Identifier: Apache-2.0
"""The options of the operator: each spelled once in `Options`, and checked once, into one `AttentionOptions`.

A new option is a key of Options, a field of AttentionOptions and two lines in `checked`; the compiled module
reads the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NewType, cast

import numpy as np

from selfattn._checks import as_integer, as_lengths, as_number, as_precision, largest_of, least_of
from selfattn.attention.arrays import FLOAT32, Array, Sizes, arithmetic, as_array

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import TypedDict

    import numpy.typing as npt

    from selfattn._checks import Int64, Precision
    from selfattn.attention.arrays import AnyArray

    class ScoreOptions(TypedDict, total=False):
        """The options that every form of attention takes."""

        mask: AnyArray | None
        bias: AnyArray | None
        causal: Causal
        window: tuple[int | None, int | None] | None
        scale: float | None
        softcap: float | None
        alibi_slopes: npt.ArrayLike | None
        sinks: npt.ArrayLike | None
        relative_bias: npt.ArrayLike | None
        precision: Precision | None

    class WeightOptions(ScoreOptions, total=False):
        """Those of the forms whose keys have no lengths of their own."""

        kv_lengths: npt.ArrayLike | None

    class Options(WeightOptions, total=False):
        """Those of the forms that are trained through."""

        dropout: float
        seed: int | None


Causal = bool | Literal["top_left", "bottom_right"]
Alignment = Literal["top_left", "bottom_right"]
Mask = NewType("Mask", Array)  # bool
Bias = NewType("Bias", Array)  # the query's dtype or float32
Window = NewType("Window", tuple[int | None, int | None])
Lengths = NewType("Lengths", Array)  # int64
Scale = NewType("Scale", float)
Softcap = NewType("Softcap", float)
Slopes = NewType("Slopes", Array)  # float64
Sinks = NewType("Sinks", Array)  # float64
RelativeBias = NewType("RelativeBias", Array)  # float64
Share = NewType("Share", float)
Seed = NewType("Seed", int)

NO_DROPOUT = Share(0.0), Seed(0)
_ENDLESS = 1 << 40  # a window wider than any array is an open one


class Problem(NamedTuple):
    """What the check of the options and the kernels must know of the arrays of a call."""

    dtype: np.dtype[Any]  # of the query
    leading: tuple[int, ...]
    sizes: Sizes  # of packed sequences the longest q_len and kv_len
    kv_lens: Int64 | None = None  # (items,) where every item has its own kv_len
    q_lens: Int64 | None = None  # (items,) of packed sequences
    total_q: int | None = None  # of packed sequences


class AttentionOptions(NamedTuple):
    """The options of one call, checked: what the kernels get of them. Made by `checked`.

    Every field has a type of its own, so that a type checker notices two that are swapped. (A dataclass would
    bring `dataclasses` and `inspect` into `import selfattn`, and takes three times as long to make.)
    """

    scale: Scale
    mask: Mask | None = None  # broadcasts to the scores
    bias: Bias | None = None  # likewise
    causal: Alignment | None = None
    window: Window | None = None
    kv_lengths: Lengths | None = None  # (items,)
    softcap: Softcap | None = None
    alibi_slopes: Slopes | None = None  # (num_heads,)
    sinks: Sinks | None = None  # (num_heads,)
    relative_bias: RelativeBias | None = None  # (num_heads, 2 * reach + 1)
    dropout: Share = Share(0.0)
    seed: Seed = Seed(0)
    precision: Precision | None = None


def checked(
    problem: Problem,
    *,
    mask: AnyArray | None = None,
    bias: AnyArray | None = None,
    causal: Causal = False,
    window: tuple[int | None, int | None] | None = None,
    kv_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    relative_bias: npt.ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    precision: Precision | None = None,
) -> AttentionOptions:
    """The options of a call as one record; TypeError or ValueError naming the first that is wrong."""
    no_dropout = seed is None and type(dropout) is float and dropout == 0.0
    share, seed_number = NO_DROPOUT if no_dropout else _dropout(dropout, seed)
    return AttentionOptions(  # by position, as that takes a third of the time
        default_scale(problem.sizes[4]) if scale is None else _scale(scale, problem),
        None if mask is None else _mask(mask, problem),
        None if bias is None else _bias(bias, problem),
        None if causal is False else _alignment(causal, problem),
        None if window is None else _window(window),
        None if kv_lengths is None else _lengths(kv_lengths, problem),
        None if softcap is None else _softcap(softcap, problem),
        None if alibi_slopes is None else _slopes(alibi_slopes, problem),
        None if sinks is None else _sinks(sinks, problem),
        None if relative_bias is None else _relative_bias(relative_bias, problem),
        share,
        seed_number,
        None if precision is None else _precision(precision, problem),
    )


@lru_cache
def no_options(head_dim: int, causal: Alignment | None = None) -> AttentionOptions:
    """What `checked` makes of no other option, made once."""
    return AttentionOptions(default_scale(head_dim), causal=causal)


class Accepted(NamedTuple):
    """The options that a form of attention takes."""

    form: str
    names: frozenset[str]

    def refuse_others(self, options: Mapping[str, object]) -> None:
        """TypeError, as Python's own, for an option that the form does not take."""
        for name in options:
            if name not in self.names:
                taken = ", ".join(field for field in AttentionOptions._fields if field in self.names)
                raise TypeError(
                    f"{self.form}() got an unexpected keyword argument {name!r}; its options are {taken}"
                )


def accepted_by(form: str, without: tuple[str, ...] = ()) -> Accepted:
    """All options but those `without`."""
    return Accepted(form, frozenset(AttentionOptions._fields) - frozenset(without))


# ---- masks ----


def _mask(x: AnyArray, problem: Problem) -> Mask:
    mask = as_array("mask", x)
    if mask.dtype != np.bool_:
        raise TypeError(f"mask has dtype {mask.dtype}; it must be bool (add floats as bias)")
    _require_broadcast("mask", mask, problem)
    return Mask(mask)


def _bias(x: AnyArray, problem: Problem) -> Bias:
    bias, dtype = as_array("bias", x), problem.dtype
    if bias.dtype not in (dtype, FLOAT32):
        accepted = "float32" if dtype == FLOAT32 else f"{dtype} or float32"
        raise TypeError(f"bias has dtype {bias.dtype}; it must be {accepted} (pass booleans as mask)")
    _require_broadcast("bias", bias, problem)
    return Bias(bias)


def _require_broadcast(name: str, array: Array, problem: Problem) -> None:
    num_heads, _, q_len, kv_len, _, _ = problem.sizes
    scores, meaning = (*problem.leading, num_heads, q_len, kv_len), "(..., num_heads, q_len, kv_len)"
    if problem.total_q is not None:
        scores, meaning = (num_heads, problem.total_q, kv_len), "(num_heads, total_q, max_kv_len)"
    sizes = zip(array.shape[::-1], scores[::-1], strict=False)
    if array.ndim > len(scores) or not all(size in (1, full) for size, full in sizes):
        raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to {scores}, {meaning}")


def _alignment(causal: object, problem: Problem) -> Alignment | None:
    """Which corner the diagonal starts from; None without one. True needs as many queries as keys."""
    if type(causal) is str and causal in ("top_left", "bottom_right"):
        return cast("Alignment", causal)
    q_len, kv_len = problem.sizes[2], problem.sizes[3]
    if problem.kv_lens is None:
        return alignment(causal, q_len, kv_len)
    q_lens = np.broadcast_to(q_len, problem.kv_lens.shape) if problem.q_lens is None else problem.q_lens
    differing = (q_lens != problem.kv_lens).nonzero()[0]
    if differing.size:
        item = differing[0]
        where = f" in {'item' if problem.q_lens is None else 'sequence'} {item}"
        return alignment(causal, q_lens[item], problem.kv_lens[item], where)
    return alignment(causal, q_len, q_len)


def alignment(causal: object, q_len: int, kv_len: int, where: str = "") -> Alignment | None:
    """What the kernels call the diagonal of q_len queries and kv_len keys; None without one."""
    if causal is False:
        return None
    if causal is True and q_len == kv_len:
        return "top_left"
    if isinstance(causal, bool | np.bool_):
        if causal and q_len != kv_len:
            choice = 'say causal="top_left" or causal="bottom_right"'
            raise ValueError(
                f"causal=True with q_len={q_len} and kv_len={kv_len}{where} is ambiguous: {choice}"
            )
        return "top_left" if causal else None
    if isinstance(causal, str) and causal in ("top_left", "bottom_right"):
        return cast("Alignment", causal)
    raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')


def _window(window: object) -> Window:
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window={window!r} must be a pair (left, right); None leaves a side open")
    left, right = window
    left = None if left is None else as_integer("window", left)
    right = None if right is None else as_integer("window", right)
    if min(left or 0, right or 0) < 0:
        raise ValueError(f"window={window!r} must not be negative; None leaves a side open")
    left = None if left is None or left > _ENDLESS else left
    return Window((left, None if right is None or right > _ENDLESS else right))


def _lengths(lengths: npt.ArrayLike, problem: Problem) -> Lengths:
    if problem.kv_lens is not None:
        return Lengths(as_lengths("kv_lengths", lengths, problem.kv_lens.size, problem.kv_lens))
    items = problem.leading[0] if problem.leading else 1
    return Lengths(as_lengths("kv_lengths", lengths, items, problem.sizes[3]))


# ---- numbers ----


def default_scale(head_dim: int) -> Scale:
    """1 / sqrt(head_dim)."""
    return Scale(1.0 / math.sqrt(head_dim))


def _scale(scale: float, problem: Problem) -> Scale:
    return Scale(as_number("scale", scale, arithmetic(problem.dtype)))


def _softcap(softcap: float, problem: Problem) -> Softcap:
    computed_in = arithmetic(problem.dtype)
    cap, least = as_number("softcap", softcap, computed_in), least_of(computed_in)
    if cap < least:
        raise ValueError(f"softcap={softcap} must be at least {least:.3g}; leave it out for none")
    return Softcap(cap)


def _slopes(x: npt.ArrayLike, problem: Problem) -> Slopes:
    slopes = _per_head("alibi_slopes", x, problem)
    _require_finite("alibi_slopes", slopes, problem)
    return Slopes(slopes)


def _sinks(x: npt.ArrayLike, problem: Problem) -> Sinks:
    logits = _per_head("sinks", x, problem)
    _require_finite("sinks", np.where(logits == -np.inf, 0, logits), problem, "; -inf is no sink")
    return Sinks(logits)


def _relative_bias(x: npt.ArrayLike, problem: Problem) -> RelativeBias:
    array, num_heads = _real_numbers("relative_bias", x), problem.sizes[0]
    if array.ndim != 2 or len(array) != num_heads or array.shape[1] % 2 == 0:
        raise ValueError(
            f"relative_bias has shape {array.shape}; it must be (num_heads={num_heads}, 2 * reach + 1), "
            "a number for each distance from -reach to reach"
        )
    computed_in = arithmetic(problem.dtype)
    table = np.array(array, np.float64, order="C")
    if not (np.abs(table) <= largest_of(computed_in)).all():
        raise ValueError(f"relative_bias holds a number that is not finite in {computed_in}")
    return RelativeBias(table)


def _real_numbers(name: str, x: npt.ArrayLike) -> Array:
    array = np.asarray(x) if isinstance(x, tuple | list) else as_array(name, x)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}; it must be real numbers")
    return array


def _per_head(name: str, x: npt.ArrayLike, problem: Problem) -> npt.NDArray[np.float64]:
    array, shape = _real_numbers(name, x), problem.sizes[:1]
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; one number for each head is {shape}")
    return np.array(array, np.float64, order="C")


def _require_finite(name: str, x: npt.NDArray[np.float64], problem: Problem, fix: str = "") -> None:
    computed_in = arithmetic(problem.dtype)
    largest = largest_of(computed_in)
    for head in (~(np.abs(x) <= largest)).nonzero()[0][:1]:
        raise ValueError(f"{name}[{head}]={x[head]} must be finite in {computed_in}, at most {largest}{fix}")


def _dropout(dropout: float, seed: int | None) -> tuple[Share, Seed]:
    """The share and the seed; a seed without a share is no dropout."""
    share = as_number("dropout", dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and less than 1")
    if seed is None and share:
        raise ValueError(f"dropout={dropout} needs seed=, an integer; attention_backward takes the same")
    number = 0 if seed is None else as_integer("seed", seed)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"seed={seed} must be between 0 and 2**64 - 1")
    return (Share(share), Seed(number)) if share else NO_DROPOUT


def _precision(precision: object, problem: Problem) -> Precision | None:
    return as_precision(precision, problem.dtype)
