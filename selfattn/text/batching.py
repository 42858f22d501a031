# SPDX-License-Identifier: Apache-2.0
"""Sentences grouped for the network: by tokens, not by count, and never padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Sentences side by side, and the rows of the caller's list that they come from."""

    rows: list[int]
    ids: NDArray[np.int64]  # (tokens,)
    cu_seqlens: NDArray[np.int64]  # (batch + 1,)


def make_batches(
    sentences: Sequence[Sequence[int]], first_row: int = 0, *, max_tokens: int, max_sentences: int
) -> Iterator[Batch]:
    """Batches over sentences given as token numbers, longest first, of similar length.

    first_row: the row of sentences[0] in the caller's list.
    A batch has at most max_tokens tokens (unless one sentence alone has more) and at most max_sentences
    sentences.
    """
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    rows: list[int] = []
    tokens = 0
    for i in order:
        if rows and (tokens + len(sentences[i]) > max_tokens or len(rows) == max_sentences):
            yield _pack(rows, sentences, first_row)
            rows, tokens = [], 0
        rows.append(i)
        tokens += len(sentences[i])
    if rows:
        yield _pack(rows, sentences, first_row)


def _pack(rows: list[int], sentences: Sequence[Sequence[int]], first_row: int) -> Batch:
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(sentences[i]) for i in rows], out=cu_seqlens[1:])
    ids = np.array([token for i in rows for token in sentences[i]], dtype=np.int64)
    return Batch([first_row + i for i in rows], ids, cu_seqlens)
