# SPDX-License-Identifier: Apache-2.0
"""What every layer is made of: named float32 arrays that nobody can change any more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from selfattn._checks import as_number
from selfattn.attention.arrays import Array as Array

if TYPE_CHECKING:
    import numpy.typing as npt

Weights = dict[str, Any]  # name -> array, or what is inside: Weights, or a list of Weights


class Layer:
    """The common part of the layers, which are frozen dataclasses: a short repr, and pickling.

    Unpickling goes through the constructor, so the arrays are checked and read-only again and nothing derived
    from them (packed weights) travels along.
    """

    def __repr__(self) -> str:
        settings = ((name, getattr(self, name)) for name in self._names())
        shown = (
            f"{name}={'x'.join(map(str, value.shape)) if isinstance(value, np.ndarray) else repr(value)}"
            for name, value in settings
            if value is not None
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {name: getattr(self, name) for name in self._names()})

    def weights(self) -> Weights:
        """The arrays by name; of a layer made of layers a dict for each, and a list for the layers in depth.

        The gradients that `backward` gives have the same structure. A bias or norm that is None is left out.
        """
        tree = {name: _weights_of(getattr(self, name)) for name in self._names()}
        return {name: part for name, part in tree.items() if part is not None}

    def replace(self, weights: Weights) -> Self:
        """A layer with these weights, in the structure of `weights()`, and this one's settings.

        ValueError naming the weight that is missing, unknown, of another shape, or holds NaN or Inf.
        """
        own = self.weights()
        if not isinstance(weights, Mapping):
            raise TypeError(
                f"weights is a {type(weights).__name__}; it must be a dict, as weights() gives it"
            )
        if weights.keys() != own.keys():
            kind = type(self).__name__
            raise ValueError(f"weights holds {', '.join(weights)}; this {kind} needs {', '.join(own)}")
        values = {name: _replaced(name, getattr(self, name), new) for name, new in weights.items()}
        return dataclasses.replace(self, **values)  # type: ignore[type-var]

    def _names(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]

    def _set(self, **values: Any) -> None:
        """Fills fields of a frozen instance, in __post_init__ only."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _are_layers(value: Any) -> bool:
    """Layers in depth; other tuples are settings."""
    return isinstance(value, tuple) and any(isinstance(one, Layer) for one in value)


def _weights_of(value: Any) -> Any:
    if isinstance(value, Layer):
        return value.weights()
    if _are_layers(value):
        return [layer.weights() for layer in value]
    return value if isinstance(value, np.ndarray) else None


def _replaced(name: str, value: Any, new: Any) -> Any:
    """A field's value with new weights; as_weight checks and keeps the arrays."""
    if isinstance(value, Layer):
        return _replaced_within(name, value, new)
    if isinstance(value, tuple):
        if not isinstance(new, Sequence):
            raise TypeError(f"{name} is a {type(new).__name__}; it must be a list, as weights() gives it")
        if len(new) != len(value):
            raise ValueError(f"{name} holds the weights of {len(new)} layers; there are {len(value)}")
        parts = enumerate(zip(value, new, strict=True))
        return [_replaced_within(f"{name}.{i}", layer, one) for i, (layer, one) in parts]
    if np.shape(new) != value.shape:
        raise ValueError(f"{name} has shape {np.shape(new)}; it replaces one of shape {value.shape}")
    return new


def _replaced_within(name: str, layer: Layer, weights: Weights) -> Layer:
    """layer.replace(weights), whose errors begin with where the layer is."""
    try:
        return layer.replace(weights)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}.{error}") from None


def _rebuild(cls: type[Layer], values: dict[str, Any]) -> Layer:
    return cls(**values)


def as_weight(name: str, array: npt.ArrayLike, ndim: int) -> Array:
    """`array` as a read-only float32 array of any strides; raises for a dtype, rank or value that cannot be a
    weight. What is still writable is copied: a later write would not reach the weights packed from it.
    """
    array = np.asarray(array)
    if array.dtype.kind in "biu" or not np.can_cast(array.dtype, np.float32, "same_kind"):
        raise TypeError(f"{name} has dtype {array.dtype}; weights are floating, kept as float32")
    if array.ndim != ndim:
        expected = ("(width,)", "(d_in, d_out)")[ndim - 1]
        raise ValueError(f"{name} has shape {array.shape}; it needs {expected}")
    if not array.size:
        raise ValueError(f"{name} has shape {array.shape}; no dimension of a weight may be 0")
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32, copy=_is_writable(array) or not array.flags.aligned)
        total = array.sum()  # of all: no memory is needed, as it is to ask each one
    if not np.isfinite(total):
        bad = np.argwhere(~np.isfinite(array))  # none, if only the sum is too large
        if len(bad):
            raise ValueError(
                f"{name} holds {len(bad)} NaN or Inf (as float32) among {array.size} values, the first at "
                f"[{', '.join(map(str, bad[0]))}]; load the weights again"
            )
    array.flags.writeable = False
    return array


def _is_writable(array: Any) -> bool:
    """Whether the memory can be written through the array, or through one that it is a view of."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return False


def protected(tensor: Array) -> Array:
    """The array, which nobody else holds, read-only down to its memory: layers need not copy it."""
    part: Any = tensor
    while isinstance(part, np.ndarray):
        part.flags.writeable = False
        part = part.base
    return tensor


def as_bias(name: str, array: npt.ArrayLike | None, width: int) -> Array | None:
    """None, or a weight of shape (width,)."""
    if array is None:
        return None
    array = as_weight(name, array, 1)
    if array.shape != (width,):
        raise ValueError(f"{name} has {array.shape[0]} values; the outputs it is added to are {width}")
    return array


def as_scale(scale: Any) -> float | None:
    """None, or a number that float32 can hold."""
    return None if scale is None else as_number("scale", scale)


def as_causal(causal: Any) -> bool:
    """True or False. The operator's other forms of causal mean the same where words attend to themselves."""
    if not isinstance(causal, bool | np.bool_):
        raise ValueError(f"causal={causal!r} must be True or False in self-attention")
    return bool(causal)


def same(what: str, **sizes: int) -> None:
    """Raises unless all sizes agree."""
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise ValueError(f"{what} differs: {listed}; they must agree")


def join_weights(matrices: list[Array]) -> Array:
    """(d_in, widths) matrices that meet the same input, side by side; a single one is not copied."""
    return np.concatenate(matrices, axis=1) if len(matrices) > 1 else matrices[0]


def join_biases(biases: list[Array | None], widths: list[int]) -> Array | None:
    """The biases of matrices put side by side: None when none has any, zeros for those without."""
    if all(one is None for one in biases):
        return None
    return np.concatenate(
        [
            np.zeros(width, np.float32) if one is None else one
            for one, width in zip(biases, widths, strict=True)
        ]
    )


def initial_weight(rng: np.random.Generator, d_in: int, d_out: int) -> Array:
    """(d_in, d_out) normal with variance 1/d_in, so that outputs are about as large as inputs."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is a {type(rng).__name__}; it must be a Generator: numpy.random.default_rng(0)")
    out: Array = rng.standard_normal((d_in, d_out)) / np.sqrt(d_in)
    return out.astype(np.float32)
