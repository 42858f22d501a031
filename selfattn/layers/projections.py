# SPDX-License-Identifier: Apache-2.0
"""What a cell and cells side by side have in common: words to queries, keys and values, and attention."""

from __future__ import annotations

from selfattn._native import pointwise as _pointwise
from selfattn.attention.options import AttentionOptions
from selfattn.layers.base import Array, Layer, as_bias, as_weight, join_biases, join_weights, same
from selfattn.layers.packed_batch import PackedBatch

ROLES = ("query", "key", "value")


class Projections(Layer):
    """A layer with query, key and value matrices (d_model, heads * dim)."""

    query_weight: Array
    key_weight: Array
    value_weight: Array

    def _heads(self) -> tuple[int, int, int]:
        """How many queries, keys and values a word has; a cell has one of each."""
        return 1, 1, 1

    @property
    def d_model(self) -> int:
        """The width of a word's vector."""
        return self.query_weight.shape[0]

    @property
    def head_dim(self) -> int:
        """The width of one query and of one key."""
        return self.query_weight.shape[1] // self._heads()[0]

    @property
    def value_dim(self) -> int:
        """The width of one value."""
        return self.value_weight.shape[1] // self._heads()[2]

    def _set_projections(self) -> None:
        """Checks and keeps the matrices and biases, in __post_init__ only."""
        for role in ROLES:
            matrix = as_weight(f"{role}_weight", getattr(self, f"{role}_weight"), 2)
            offset = as_bias(f"{role}_bias", getattr(self, f"{role}_bias"), matrix.shape[1])
            self._set(**{f"{role}_weight": matrix, f"{role}_bias": offset})
        query, key, value = self.query_weight, self.key_weight, self.value_weight
        same("d_model", query_weight=len(query), key_weight=len(key), value_weight=len(value))

    def _attend(self, words: PackedBatch, options: AttentionOptions, threads: int) -> Array:
        """What the heads say of every word, side by side, (tokens, num_heads * value_dim)."""
        query, key, value = self._attending(words, threads)
        return words.attend(query, key, value, options, threads)

    def _weigh(self, words: PackedBatch, options: AttentionOptions, threads: int) -> Array:
        """How much each word attends to each other in each head, ([batch,] num_heads, seq_len, seq_len)."""
        query, key = self._attending(words, threads, ROLES[:2])
        return words.attention_weights(query, key, options, threads)

    def _attending(self, words: PackedBatch, threads: int, roles: tuple[str, ...] = ROLES) -> list[Array]:
        """The queries, keys and values that attention takes; here, as they are projected."""
        return self._project(words.tokens, threads, roles)

    def _project(self, rows: Array, threads: int, roles: tuple[str, ...] = ROLES) -> list[Array]:
        """rows (tokens, d_model): the queries, keys and values of every word, (tokens, heads, dim) each."""
        projected: list[Array] = []
        for role, heads in zip(roles, self._heads(), strict=False):
            matrix, offset = getattr(self, f"{role}_weight"), getattr(self, f"{role}_bias")
            flat = _pointwise.linear(rows, matrix, offset, None, threads)
            projected.append(flat.reshape(len(flat), heads, flat.shape[1] // heads))
        return projected

    def _joined(self) -> tuple[Array, Array | None]:
        """The three matrices side by side, and their biases: what the compiled stack multiplies words by."""
        matrices = [getattr(self, f"{role}_weight") for role in ROLES]
        biases = [getattr(self, f"{role}_bias") for role in ROLES]
        return join_weights(matrices), join_biases(biases, [matrix.shape[1] for matrix in matrices])
