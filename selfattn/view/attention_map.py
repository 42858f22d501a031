# SPDX-License-Identifier: Apache-2.0
"""AttentionMap: the attention weights of one sentence, with the tokens they belong to."""

from __future__ import annotations

import html
import operator
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfattn.view import page, terminal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Selection = int | Sequence[int] | None


class AttentionMap:
    """Which token attends to which, for every layer and head.

    tokens: the L tokens, in order.
    weights: (layers, heads, L, L), kept as float32; ``weights[l, h, i, j]`` is how much token i attends to
        token j.
    words: for each token the number of the word it is a piece of, None for special tokens such as [CLS];
        without it every token counts as a word of its own.
    title: shown above the picture, for example the name of the model.

    Layers and heads are counted from 0, as in NumPy. Raises ValueError when the sizes do not agree, or when a
    weight is negative or not finite.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        weights: ArrayLike,
        *,
        words: Sequence[int | None] | None = None,
        title: str = "",
    ) -> None:
        self.tokens = [str(token) for token in tokens]
        self.weights: NDArray[np.float32] = np.asarray(weights, dtype=np.float32)
        length = len(self.tokens)
        if self.weights.ndim != 4 or self.weights.shape[2:] != (length, length) or 0 in self.weights.shape:
            raise ValueError(
                f"weights has shape {self.weights.shape}, expected (layers, heads, {length}, {length}) "
                f"for {length} tokens, none of them 0"
            )
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise ValueError(
                "weights must be finite and not negative: give the softmax's result, not its scores"
            )
        self.word_ids: list[int | None] = list(range(length) if words is None else words)
        if len(self.word_ids) != length:
            raise ValueError(
                f"words has {len(self.word_ids)} entries, expected one for each of the {length} tokens"
            )
        self.title = title

    @property
    def num_layers(self) -> int:
        return len(self.weights)

    @property
    def num_heads(self) -> int:
        return len(self.weights[0])

    def __repr__(self) -> str:
        return (
            f"AttentionMap({' '.join(self.labels())!r}, {self.num_layers} layers, {self.num_heads} heads, "
            f"{len(self.tokens)} tokens)"
        )

    def labels(self) -> list[str]:
        """The tokens as a reader expects them, without the tokenizer's marks for the pieces of words."""
        pairs = zip(self.tokens, self.word_ids, strict=True)
        return [token if word is None else _plain(token) for token, word in pairs]

    def words(self, *, special: bool = True) -> AttentionMap:
        """A new map between words instead of word pieces.

        Attention to a word is the sum over its pieces, attention from a word the mean over them, so that rows
        still sum to 1. With ``special=False`` the special tokens are left out; the remaining rows are not
        renormalised: what is missing to 1 went to the special tokens.
        """
        ids = self.word_ids
        starts = [i for i, word in enumerate(ids) if i == 0 or word is None or word != ids[i - 1]]
        ends = [*starts[1:], len(ids)]
        counts = np.subtract(ends, starts).astype(np.float32)
        merged = np.add.reduceat(self.weights, starts, axis=3)
        merged = np.add.reduceat(merged, starts, axis=2) / counts[:, None]
        kept = [i for i, start in enumerate(starts) if special or ids[start] is not None]
        if not kept:
            raise ValueError(f"all {len(ids)} tokens are special: nothing is left to show with special=False")
        labels = self.labels()
        return AttentionMap(
            ["".join(labels[starts[i] : ends[i]]) for i in kept],
            merged[:, :, kept][:, :, :, kept],
            words=[ids[starts[i]] for i in kept],
            title=self.title,
        )

    def select(self, layer: Selection = None, head: Selection = None) -> NDArray[np.float32]:
        """The (L, L) weights of one layer and head; the mean over those in a list, over all when None.

        Negative numbers count from the end. Raises IndexError when a layer or head does not exist.
        """
        layers = _indices("layer", layer, self.num_layers)
        heads = _indices("head", head, self.num_heads)
        chosen: NDArray[np.float32] = self.weights[np.ix_(layers, heads)].mean(axis=(0, 1))
        return chosen

    def find(self, word: int | str) -> int:
        """The position of a token: a number, or the first token that reads ``word`` (whatever its case)."""
        if not isinstance(word, str):
            return _indices("word", word, len(self.tokens))[0]
        labels = [label.casefold() for label in self.labels()]
        if word.casefold() not in labels:
            shown = " ".join(self.labels()[:30])
            raise ValueError(f"word={word!r} is not among the {len(labels)} tokens: {shown}")
        return labels.index(word.casefold())

    def text(
        self,
        layer: Selection = None,
        head: Selection = None,
        *,
        word: int | str | None = None,
        color: bool | None = None,
        width: int | None = None,
    ) -> str:
        """The map for a terminal: a matrix in percent, each row a token and what it attends to.

        word: only what this token attends to, as bars.
        color: shades in ANSI colours; None = when standard output is a terminal and NO_COLOR is not set.
        width: columns to fill, None = those of the terminal; where a matrix does not fit, each row lists its
            strongest.
        """
        weights = self.select(layer, head)
        color = terminal.wants_color() if color is None else color
        caption = terminal.caption(self.title, layer, head, self.num_layers, self.num_heads)
        if word is not None:
            return terminal.bars(self.labels(), weights, self.find(word), caption, color=color)
        return terminal.matrix(self.labels(), weights, caption, color=color, width=terminal.columns(width))

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        word: int | str | None = None,
    ) -> str:
        """One self-contained page of at most 2 MB, returned and, with ``path``, written there in UTF-8.

        layer, head, word: what the page shows first; the reader can choose any other. The page needs no
        network. It stores 8 bits for each weight; a map too large for that keeps the strongest of each row,
        and fewer layers if it must, and says so.
        """
        start = {
            "layer": None if layer is None else _indices("layer", layer, self.num_layers)[0],
            "head": None if head is None else _indices("head", head, self.num_heads)[0],
            "token": None if word is None else self.find(word),
        }
        text = page.render(self.labels(), self.word_ids, self.weights, title=self.title, start=start)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return text

    def _repr_html_(self) -> str:
        # srcdoc keeps the page's styles and script apart from the notebook's.
        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" title="attention map" sandbox="allow-scripts" '
            'style="width: 100%; height: 720px; border: 0"></iframe>'
        )

    def plot(
        self, ax: Axes | None = None, layer: Selection = None, head: Selection = None, **imshow: Any
    ) -> Axes:
        """The matrix as a matplotlib picture, on ``ax`` or a new figure; the rest goes to `Axes.imshow`."""
        from selfattn.view import figure

        return figure.draw(self.labels(), self.select(layer, head), self.title, ax, imshow)


def _plain(token: str) -> str:
    """The token without the marks of WordPiece (##), byte-level BPE (U+0120) and SentencePiece (U+2581)."""
    return token.removeprefix("##").lstrip("\u0120\u2581") or token


def _indices(name: str, chosen: Selection, count: int) -> list[int]:
    """The chosen numbers as a list of indices below ``count``; all of them for None."""
    if chosen is None:
        return list(range(count))
    numbers = [operator.index(n) for n in (chosen if isinstance(chosen, Iterable) else [chosen])]
    if not numbers:
        raise ValueError(f"{name}=[] chooses nothing: give None for the mean over all {count}")
    for number in numbers:
        if not -count <= number < count:
            raise IndexError(f"{name}={number} is out of range: there are {count}, numbered 0 to {count - 1}")
    return [number % count for number in numbers]
