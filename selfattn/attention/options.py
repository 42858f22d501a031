"""The options of the operator: each spelled once in `Options`, and checked once, into one `AttentionOptions`.

A new option is a key of Options, a field of AttentionOptions and a line in `checked`; the compiled module
reads the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
Scale = NewType("Scale", float)
Softcap = NewType("Softcap", float)

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

    (A dataclass would bring `dataclasses` and `inspect` into `import selfattn`, and takes three times as long
    to make.)
    """

    scale: Scale
    mask: Array | None = None  # bool, broadcasts to the scores
    bias: Array | None = None  # the query's dtype or float32, broadcasts likewise
    causal: Alignment | None = None
    window: tuple[int | None, int | None] | None = None
    kv_lengths: Int64 | None = None  # (items,)
    softcap: Softcap | None = None
    alibi_slopes: npt.NDArray[np.float64] | None = None  # (num_heads,)
    sinks: npt.NDArray[np.float64] | None = None  # (num_heads,)
    relative_bias: npt.NDArray[np.float64] | None = None  # (num_heads, 2 * reach + 1)
    dropout: float = 0.0
    seed: int = 0
    precision: Precision | None = None


class Accepted(NamedTuple):
    """The options that a form of attention takes, for its error."""

    form: str
    names: frozenset[str]


def accepted_by(form: str, without: tuple[str, ...] = ()) -> Accepted:
    """All options but those `without`."""
    return Accepted(form, frozenset(AttentionOptions._fields) - frozenset(without))


def checked(
    problem: Problem, options: Mapping[str, object], accepted: Accepted | None = None
) -> AttentionOptions:
    """The options of a call as one record; TypeError or ValueError naming the first that is wrong.

    TypeError, too, for one that is not `accepted`. What is missing or None is not given.
    """
    if accepted is not None and not options.keys() <= accepted.names:
        raise TypeError(_unexpected(options, accepted))
    given = cast("Options", options)
    num_heads, _, _, _, head_dim, _ = problem.sizes
    computed_in = arithmetic(problem.dtype)
    mask, bias, causal = given.get("mask"), given.get("bias"), given.get("causal", False)
    window, kv_lengths, scale = given.get("window"), given.get("kv_lengths"), given.get("scale")
    softcap, slopes, sinks = given.get("softcap"), given.get("alibi_slopes"), given.get("sinks")
    relative = given.get("relative_bias")
    dropout, seed, precision = given.get("dropout", 0.0), given.get("seed"), given.get("precision")
    no_dropout = seed is None and type(dropout) is float and dropout == 0.0
    share, seed_number = (0.0, 0) if no_dropout else _dropout(dropout, seed)
    return AttentionOptions(
        mask=None if mask is None else _mask(mask, problem),
        bias=None if bias is None else _bias(bias, problem),
        causal=None if causal is False else _alignment(causal, problem),
        scale=default_scale(head_dim) if scale is None else _scale(scale, computed_in),
        window=None if window is None else _window(window),
        softcap=None if softcap is None else _softcap(softcap, computed_in),
        alibi_slopes=None if slopes is None else _slopes(slopes, num_heads, computed_in),
        sinks=None if sinks is None else _sinks(sinks, num_heads, computed_in),
        relative_bias=None if relative is None else _relative_bias(relative, num_heads, computed_in),
        dropout=share,
        seed=seed_number,
        precision=None if precision is None else _precision(precision, problem.dtype),
        kv_lengths=None if kv_lengths is None else _lengths(kv_lengths, problem),
    )


def _unexpected(options: Mapping[str, object], accepted: Accepted) -> str:
    name = next(name for name in options if name not in accepted.names)
    taken = ", ".join(field for field in AttentionOptions._fields if field in accepted.names)
    return f"{accepted.form}() got an unexpected keyword argument {name!r}; its options are {taken}"


# ---- masks ----


def _mask(x: AnyArray, problem: Problem) -> Array:
    mask = as_array("mask", x)
    if mask.dtype != np.bool_:
        raise TypeError(f"mask has dtype {mask.dtype}; it must be bool (add floats as bias)")
    _require_broadcast("mask", mask, problem)
    return mask


def _bias(x: AnyArray, problem: Problem) -> Array:
    bias, dtype = as_array("bias", x), problem.dtype
    if bias.dtype not in (dtype, FLOAT32):
        accepted = "float32" if dtype == FLOAT32 else f"{dtype} or float32"
        raise TypeError(f"bias has dtype {bias.dtype}; it must be {accepted} (pass booleans as mask)")
    _require_broadcast("bias", bias, problem)
    return bias


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
    if isinstance(causal, str):
        if causal == "top_left":
            return "top_left"
        if causal == "bottom_right":
            return "bottom_right"
    raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')


def _window(window: object) -> tuple[int | None, int | None]:
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window={window!r} must be a pair (left, right); None leaves a side open")
    left, right = window
    left = None if left is None else as_integer("window", left)
    right = None if right is None else as_integer("window", right)
    if min(left or 0, right or 0) < 0:
        raise ValueError(f"window={window!r} must not be negative; None leaves a side open")
    return (
        None if left is None or left > _ENDLESS else left,
        None if right is None or right > _ENDLESS else right,
    )


def _lengths(lengths: npt.ArrayLike, problem: Problem) -> Int64:
    if problem.kv_lens is not None:
        return as_lengths("kv_lengths", lengths, problem.kv_lens.size, problem.kv_lens)
    return as_lengths("kv_lengths", lengths, problem.leading[0] if problem.leading else 1, problem.sizes[3])


# ---- numbers ----


def default_scale(head_dim: int) -> Scale:
    """1 / sqrt(head_dim)."""
    return Scale(1.0 / math.sqrt(head_dim))


def _scale(scale: float, computed_in: np.dtype[Any]) -> Scale:
    return Scale(as_number("scale", scale, computed_in))


def _softcap(softcap: float, computed_in: np.dtype[Any]) -> Softcap:
    cap, least = as_number("softcap", softcap, computed_in), least_of(computed_in)
    if cap < least:
        raise ValueError(f"softcap={softcap} must be at least {least:.3g}; leave it out for none")
    return Softcap(cap)


def _slopes(x: npt.ArrayLike, num_heads: int, computed_in: np.dtype[Any]) -> npt.NDArray[np.float64]:
    slopes = _per_head("alibi_slopes", x, num_heads)
    _require_finite("alibi_slopes", slopes, computed_in)
    return slopes


def _sinks(x: npt.ArrayLike, num_heads: int, computed_in: np.dtype[Any]) -> npt.NDArray[np.float64]:
    logits = _per_head("sinks", x, num_heads)
    _require_finite("sinks", np.where(logits == -np.inf, 0, logits), computed_in, "; -inf is no sink")
    return logits


def _relative_bias(x: npt.ArrayLike, num_heads: int, computed_in: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """(num_heads, 2 * reach + 1) of the distances -reach to reach of a key from the query's position."""
    table = _real_numbers("relative_bias", x)
    if table.ndim != 2 or len(table) != num_heads or table.shape[1] % 2 == 0:
        raise ValueError(
            f"relative_bias has shape {table.shape}; it must be (num_heads={num_heads}, 2 * reach + 1), "
            "a number for each distance from -reach to reach"
        )
    wide = np.array(table, np.float64, order="C")
    if not (np.abs(wide) <= largest_of(computed_in)).all():
        raise ValueError(f"relative_bias holds NaN, Inf or a number that is not finite in {computed_in}")
    return wide


def _per_head(name: str, x: npt.ArrayLike, num_heads: int) -> npt.NDArray[np.float64]:
    array = _real_numbers(name, x)
    if array.shape != (num_heads,):
        raise ValueError(f"{name} has shape {array.shape}; one number for each head is {(num_heads,)}")
    return np.array(array, np.float64, order="C")


def _real_numbers(name: str, x: npt.ArrayLike) -> Array:
    array = np.asarray(x) if isinstance(x, tuple | list) else as_array(name, x)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}; it must be real numbers")
    return array


def _require_finite(name: str, x: npt.NDArray[np.float64], computed_in: np.dtype[Any], fix: str = "") -> None:
    largest = largest_of(computed_in)
    for head in (~(np.abs(x) <= largest)).nonzero()[0][:1]:
        raise ValueError(f"{name}[{head}]={x[head]} must be finite in {computed_in}, at most {largest}{fix}")


def _dropout(dropout: float, seed: int | None) -> tuple[float, int]:
    """The share and the seed; a seed without a share is no dropout."""
    share = as_number("dropout", dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and less than 1")
    if seed is None and share:
        raise ValueError(f"dropout={dropout} needs seed=, an integer; attention_backward takes the same")
    number = 0 if seed is None else as_integer("seed", seed)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"seed={seed} must be between 0 and 2**64 - 1")
    return (share, number) if share else (0.0, 0)


def _precision(precision: object, dtype: np.dtype[Any]) -> Precision | None:
    return as_precision(precision, dtype)
