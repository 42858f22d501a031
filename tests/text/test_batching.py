# SPDX-License-Identifier: Apache-2.0
"""Grouping by tokens: every sentence once, longest first, within both limits."""

from itertools import pairwise

import numpy as np
import pytest

from selfattn.text.batching import make_batches


@pytest.mark.parametrize("max_tokens", [1, 10, 64, 10_000])
@pytest.mark.parametrize("max_sentences", [1, 4, 1000])
def test_batches_keep_within_both_limits(
    max_tokens: int, max_sentences: int, rng: np.random.Generator
) -> None:
    sentences = [list(rng.integers(0, 99, length)) for length in rng.integers(0, 20, 60)]
    batches = list(make_batches(sentences, 100, max_tokens=max_tokens, max_sentences=max_sentences))

    assert sorted(row for batch in batches for row in batch.rows) == list(range(100, 160))
    lengths = [len(sentences[row - 100]) for batch in batches for row in batch.rows]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        parts = np.split(batch.ids, batch.cu_seqlens[1:-1])
        assert [list(part) for part in parts] == [sentences[row - 100] for row in batch.rows]
        assert len(batch.rows) <= max_sentences
        assert len(batch.ids) <= max_tokens or len(batch.rows) == 1
    for batch, after in pairwise(batches):  # and no batch ends too early
        full = len(batch.rows) == max_sentences
        assert full or len(batch.ids) + after.cu_seqlens[1] > max_tokens


def test_no_sentences_no_batches() -> None:
    assert list(make_batches([], max_tokens=10, max_sentences=10)) == []
