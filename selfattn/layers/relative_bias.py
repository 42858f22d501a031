# SPDX-License-Identifier: Apache-2.0
"""Relative-position bias: a small table of numbers by bucketed distance, added to the scores of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from selfattn._checks import as_integer
from selfattn.layers.base import Array, Layer, Weights, as_weight


@dataclass(frozen=True, eq=False, repr=False)
class RelativeBias(Layer):
    """A number for each bucket of distances and each head, added to the scaled scores: T5's positions.

    "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (Raffel et al., 2020),
    section 2.1. Half of the buckets of a direction are single distances, the others grow with the logarithm
    of the distance up to max_distance; what is farther shares the last. No (length, length) array is made.

    Args:
        table: (num_buckets, num_heads), a weight: floating, kept as read-only float32.
        max_distance: from here on all distances share a bucket.
        bidirectional: half of the buckets are for keys after the query; False puts all of them into bucket 0,
            for causal attention.

    Raises:
        TypeError: a table that is not floating, a max_distance that is no integer, or a bidirectional that is
            not a bool.
        ValueError: a table of another rank, with NaN or Inf, or with a number of buckets that cannot be
            halved; a max_distance within the buckets of single distances.

    >>> bias = RelativeBias(np.zeros((32, 12), np.float32))
    >>> bias.by_distance().shape  # distances -128 to 128
    (12, 257)
    """

    table: Array
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        self._set(table=as_weight("table", self.table, 2))
        self._set(max_distance=as_integer("max_distance", self.max_distance))
        if not isinstance(self.bidirectional, bool | np.bool_):
            raise TypeError(f"bidirectional={self.bidirectional!r} must be True or False")
        self._set(bidirectional=bool(self.bidirectional))
        halvings = 4 if self.bidirectional else 2
        if len(self.table) % halvings:
            raise ValueError(
                f"table has {len(self.table)} buckets; their number must be a multiple of {halvings}"
            )
        if self.max_distance <= len(self.table) // halvings:
            single = len(self.table) // halvings
            raise ValueError(
                f"max_distance={self.max_distance} must be more than {single}, the single distances of table"
            )

    @property
    def num_heads(self) -> int:
        """The columns of the table."""
        return self.table.shape[1]

    @cached_property
    def _buckets(self) -> Array:
        """The bucket of each distance from -max_distance to max_distance."""
        m = self.max_distance
        buckets = [bucket(d, len(self.table), m, self.bidirectional) for d in range(-m, m + 1)]
        return np.array(buckets, np.intp)

    @cached_property
    def _by_distance(self) -> Array:
        by_distance = np.ascontiguousarray(self.table[self._buckets].T, np.float64)
        by_distance.flags.writeable = False
        return by_distance

    def by_distance(self) -> Array:
        """(num_heads, 2 * max_distance + 1) float64, read-only: the operator's option `relative_bias`."""
        return self._by_distance

    def backward(self, grad_by_distance: Array) -> Weights:
        """The gradient of the table, from that of by_distance(): summed in float64 and rounded once."""
        grad_by_distance = np.asarray(grad_by_distance)
        if grad_by_distance.shape != self._by_distance.shape:
            raise ValueError(
                f"grad_by_distance has shape {grad_by_distance.shape}; "
                f"by_distance() has {self._by_distance.shape}"
            )
        grad = np.zeros(self.table.shape)
        np.add.at(grad, self._buckets, grad_by_distance.T.astype(np.float64))
        return {"table": grad.astype(np.float32)}


def bucket(distance: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """The bucket of a key at that distance after the query. The logarithms are float32, as T5's are."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if distance > 0 else 0
    elif distance > 0:
        return 0
    distance, single = abs(distance), num_buckets // 2
    if distance < single:
        return first + distance
    logarithm = np.float32(math.log(distance / single)) / np.float32(math.log(max_distance / single))
    return first + min(single + int(logarithm * np.float32(num_buckets - single)), num_buckets - 1)
