# SPDX-License-Identifier: Apache-2.0
"""Weights as trees: dicts and lists, nested, that end in arrays. Every array has a dotted name.

    {"layers": [{"norm": {"weight": w, "bias": None}}]}   flattens to   {"layers.0.norm.weight": w}

None stands for an array that a layer does not have; it has no name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from selfattn.attention.arrays import Array as Array

Tree: TypeAlias = "Mapping[str, Tree] | Sequence[Tree] | Array | None"
AnyTree = TypeVar("AnyTree", bound=Tree)
Shapes = dict[str, tuple[int, ...]]


def flatten(tree: Tree) -> dict[str, Array]:
    """The arrays of a tree by dotted name, in its order.

    Raises TypeError for an entry that is not a dict, list, tuple, NumPy array or None, ValueError for two
    arrays of one name: {"a.b": x, "a": {"b": y}}.
    """
    flat: dict[str, Array] = {}
    for name, array in _entries(tree, ""):
        if name in flat:
            raise ValueError(f"two entries are named {name}; a tree names each of its arrays once")
        flat[name] = array
    return flat


def unflatten(flat: Mapping[str, Array], like: AnyTree) -> AnyTree:
    """The tree with the structure of `like` and the arrays of `flat`, by dotted name.

    Raises ValueError naming an entry that `flat` lacks, or has and `like` does not.
    """
    require_names("flat", flat, flatten(like), "like")

    def rebuild(tree: Any, name: str) -> Any:
        if isinstance(tree, np.ndarray):
            return flat[name]
        if isinstance(tree, Mapping):
            return {key: rebuild(part, _join(name, key)) for key, part in tree.items()}
        if tree is None:
            return None
        parts = [rebuild(part, _join(name, i)) for i, part in enumerate(tree)]
        return tuple(parts) if isinstance(tree, tuple) else parts

    rebuilt: AnyTree = rebuild(like, "")
    return rebuilt


def _entries(tree: Any, name: str) -> Iterator[tuple[str, Array]]:
    if isinstance(tree, np.ndarray):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _entries(part, _join(name, key))
    elif tree is not None:
        what = f"the entry {name}" if name else "the tree"
        raise TypeError(
            f"{what} is a {type(tree).__name__}; a tree is made of dicts and lists that end in NumPy arrays"
        )


def _join(name: str, key: str | int) -> str:
    return f"{name}.{key}" if name else str(key)


# ---- checks: every error names an entry ----


def flatten_float32(what: str, tree: Tree) -> dict[str, Array]:
    """flatten(tree); TypeError naming `what` and the first entry that is not float32."""
    try:
        flat = flatten(tree)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None
    for name, array in flat.items():
        if array.dtype != np.float32:
            raise TypeError(
                f"{what}: {name} has dtype {array.dtype}; it must be float32: .astype(np.float32)"
            )
    return flat


def require_finite(what: str, flat: Mapping[str, Array]) -> None:
    """ValueError naming `what` and the first entry that holds NaN or Inf."""
    for name, array in flat.items():
        if bad := array.size - np.count_nonzero(np.isfinite(array)):
            raise ValueError(f"{what}: {name} holds {bad} NaN or Inf among its {array.size} values")


def shapes(flat: Mapping[str, Array]) -> Shapes:
    """The shape of every entry."""
    return {name: array.shape for name, array in flat.items()}


def require_names(what: str, found: Mapping[str, Any], expected: Mapping[str, Any], whose: str) -> None:
    """ValueError naming the first entry that `found` lacks, or has beyond `expected`, which is `whose`."""
    if missing := [name for name in expected if name not in found]:
        raise ValueError(
            f"{what} lacks {len(missing)} of {whose}'s {len(expected)} entries, first {missing[0]}"
        )
    if surplus := [name for name in found if name not in expected]:
        raise ValueError(f"{what} has {len(surplus)} entries that {whose} does not have, first {surplus[0]}")


def require_shapes(what: str, found: Shapes, expected: Shapes, whose: str) -> None:
    """ValueError naming the first entry that is missing, surplus or of another shape than in `whose`."""
    require_names(what, found, expected, whose)
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{what}: {name} has shape {found[name]}; in {whose} it has {shape}")
