# SPDX-License-Identifier: Apache-2.0
"""Many texts, and many callers: Ctrl-C is heard between slices, and no truncated text is lost to a race."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from support.tiny_models import SENTENCES

from selfattn.text import TextEncoder, text_encoder

TEXTS = SENTENCES * 60


def test_texts_are_tokenized_in_slices_and_sorted_together(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TextEncoder.from_pretrained(directory)
    tokenized: list[int] = []
    sorted_: list[int] = []
    encode_texts, make_batches = text_encoder.encode_texts, text_encoder.make_batches

    def tokenize(tokenizer: Any, texts: list[str], **how: Any) -> Any:
        tokenized.append(len(texts))
        return encode_texts(tokenizer, texts, **how)

    def sort(sentences: Any, *arguments: Any, **how: Any) -> Any:
        sorted_.append(len(sentences))
        return make_batches(sentences, *arguments, **how)

    monkeypatch.setattr(text_encoder, "encode_texts", tokenize)
    monkeypatch.setattr(text_encoder, "make_batches", sort)
    table = model.encode(TEXTS)
    assert tokenized == [128, 128, 128, 36]
    assert sorted_ == [420]
    np.testing.assert_array_equal(table[-len(SENTENCES) :], model.encode(SENTENCES))


def test_ctrl_c_between_slices_ends_the_call(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextEncoder.from_pretrained(directory)
    encode_texts, calls = text_encoder.encode_texts, iter(range(2))

    def tokenize(tokenizer: Any, texts: list[str], **how: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return encode_texts(tokenizer, texts, **how)

    monkeypatch.setattr(text_encoder, "encode_texts", tokenize)
    with pytest.raises(KeyboardInterrupt):
        model.encode(TEXTS)


class LongText:
    """An encoding that was cut off, and makes whoever counts it wait for the other one."""

    def __init__(self, barrier: Barrier, length: int) -> None:
        self.barrier, self.length = barrier, length

    def __len__(self) -> int:
        return self.length

    @property
    def overflowing(self) -> list[int]:
        self.barrier.wait(timeout=10)
        return [1]


def test_threads_that_count_at_once_lose_no_text(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextEncoder.from_pretrained(directory)
    long = LongText(Barrier(2), model.max_seq_length)
    monkeypatch.setattr(text_encoder, "encode_texts", lambda *arguments, **how: [long])
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda text: model._tokenize([text], 1), ["cat", "dog"]):
            pass
    assert model.truncated == 2
