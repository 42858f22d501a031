# SPDX-License-Identifier: Apache-2.0
"""What is measured: one attention call, or one pass of a whole encoder over token ids."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from selfattn.attention.arrays import Array as Array
from selfattn.bench.options import CARRIER as CARRIER
from selfattn.bench.random_model import RANDOM_MODELS, random_model

PEER_BATCH = 32  # sentences per padded batch of the ragged set, the default of the libraries people use
MAX_TOKENS = 256
SWEEP_TOKENS, SWEEP_HEAD_DIM = 16384, 64
ROWS = 1024  # queries whose scores the specification holds at once


@dataclass(frozen=True)
class AttentionWorkload:
    """softmax(Q K^T / sqrt(d)) V on (batch, heads, length, head_dim) arrays of N(0, 1).

    `precision` is that of the products; for "bfloat16" the inputs are numbers that bfloat16 has.
    """

    batch: int
    heads: int
    length: int
    head_dim: int
    precision: str = "float32"
    kind: str = "operator"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.length, self.head_dim

    @property
    def name(self) -> str:
        return str(self.length) if self.kind == "sweep" else "x".join(map(str, self.shape))

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.heads * self.length**2 * self.head_dim

    @property
    def bytes(self) -> int:
        """Of query, key, value and result, once."""
        return 4 * math.prod(self.shape) * (2 if self.precision == "bfloat16" else 4)

    @cached_property
    def arrays(self) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(20)
        query, key, value = (rng.standard_normal(self.shape, dtype=np.float32) for _ in range(3))
        if self.precision == "bfloat16":
            query, key, value = (x.astype(bfloat16()).astype(np.float32) for x in (query, key, value))
        return query, key, value

    @cached_property
    def expected(self) -> Array:
        """The specification in float64, some queries of one head at a time."""
        from selfattn import reference

        out = np.empty(self.shape)
        for index in np.ndindex(self.batch, self.heads):
            query, key, value = (x[index][None].astype(np.float64) for x in self.arrays)
            for start in range(0, self.length, ROWS):
                rows = slice(start, start + ROWS)
                out[index][rows] = reference.attention(query[:, rows], key, value)[0]
        return out

    @cached_property
    def tolerance(self) -> float:
        """Naive float32 is within 2e-6 on these inputs; in bfloat16 two units in the last place of the
        largest result.
        """
        return 2.0**-7 * float(np.abs(self.expected).max()) if self.precision == "bfloat16" else 1e-5

    def error(self, result: Array) -> float:
        """Largest absolute difference to the expected values; infinite when the shapes differ."""
        return max_error(result.astype(np.float64), self.expected)


@dataclass(frozen=True)
class EncoderWorkload:
    """Token ids in, token embeddings out. `sentences`: one int64 array of ids for each sentence.

    `order`: the sentences in the order in which a library that pads takes them.
    """

    name: str
    model: Path
    sentences: Sequence[Array]
    order: Sequence[int]
    precision: str = "float32"  # of the products

    kind = "encoder"

    @property
    def random_model(self) -> str | None:
        """Whose sizes these are, if the weights are random."""
        return self.model.name if self.model.name in RANDOM_MODELS else None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sentences))

    @cached_property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.model / "config.json").read_text())
        return config

    @property
    def flops(self) -> int:
        """Multiply-adds of the real tokens, times 2: what padding adds is not useful work."""
        width, hidden = self.config["hidden_size"], self.config["intermediate_size"]
        layers: int = self.config["num_hidden_layers"]
        linear: int = self.tokens * (8 * width**2 + 4 * width * hidden)
        attention: int = 4 * width * sum(len(ids) ** 2 for ids in self.sentences)
        return layers * (linear + attention)

    @cached_property
    def packed(self) -> tuple[Array, Array]:
        """ids (tokens,), cu_seqlens (sentences + 1,), in the order of the sentences."""
        lengths = [len(ids) for ids in self.sentences]
        return np.concatenate(self.sentences), np.cumsum([0, *lengths], dtype=np.int64)

    @cached_property
    def batches(self) -> list[tuple[Array, Array]]:
        """ids and mask, (PEER_BATCH or fewer, longest) each: zero padded, taken in `order`."""
        starts = range(0, len(self.order), PEER_BATCH)
        return [pad([self.sentences[i] for i in self.order[start : start + PEER_BATCH]]) for start in starts]

    @cached_property
    def expected(self) -> Array:
        """The specification in float64: (tokens, hidden_size)."""
        from selfattn.bench.bert import token_embeddings

        return token_embeddings(self.model, self.sentences)

    @cached_property
    def tolerance(self) -> float:
        """float32 engines are within 1e-5 on these embeddings of size 1; in bfloat16 one that rounds whatever
        lies between the products too is within 2^-5 of the largest number, the others within half of that.
        """
        return 2.0**-5 * float(np.abs(self.expected).max()) if self.precision == "bfloat16" else 5e-5

    def error(self, result: Array | list[Array]) -> float:
        """Largest absolute difference to the expected values, over real tokens."""
        rows = self.pack(result) if isinstance(result, list) else result
        return max_error(rows.astype(np.float64), self.expected)

    def pack(self, outputs: list[Array]) -> Array:
        """Padded batches (batch, longest, hidden_size) -> (tokens, hidden_size), in the order of `packed`."""
        rows = (row for batch in outputs for row in batch)
        unpadded = {i: row[: len(self.sentences[i])] for i, row in zip(self.order, rows, strict=True)}
        return np.concatenate([unpadded[i] for i in range(len(self.sentences))])


def bfloat16() -> np.dtype[Any]:
    import ml_dtypes  # noqa: F401  gives NumPy the name

    return np.dtype("bfloat16")


def attention_workload(shape: str, precision: str = "float32") -> AttentionWorkload:
    """`1x12x128x64`: batch, heads, length, head_dim."""
    batch, heads, length, head_dim = map(int, shape.split("x"))
    return AttentionWorkload(batch, heads, length, head_dim, precision)


def sweep_workload(length: str, precision: str = "float32") -> AttentionWorkload:
    """The same tokens in sequences of this length, so that every row works on the same arrays."""
    batch = max(1, SWEEP_TOKENS // int(length))
    return AttentionWorkload(batch, 1, int(length), SWEEP_HEAD_DIM, precision, "sweep")


def encoder_workload(shape: str, model: Path, precision: str = "float32") -> EncoderWorkload:
    """`32x128` is a batch of random token ids, `ragged256` that many sentences."""
    if shape.startswith("ragged"):
        if model.name in RANDOM_MODELS:
            raise ValueError(f"shape {shape}: the tokenizer of {model.name} knows no word, give BATCHxTOKENS")
        return ragged_workload(int(shape.removeprefix("ragged")), model, precision)
    batch, tokens = map(int, shape.split("x"))
    return EncoderWorkload(shape, model, random_ids(batch, tokens, model), range(batch), precision)


def max_error(result: Array, expected: Array) -> float:
    return float(np.abs(result - expected).max()) if result.shape == expected.shape else float("inf")


def pad(sentences: Sequence[Array]) -> tuple[Array, Array]:
    lengths = np.array([len(ids) for ids in sentences])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    ids[mask.astype(bool)] = np.concatenate(sentences)
    return ids, mask


def random_ids(batch: int, tokens: int, model: Path) -> list[Array]:
    config = json.loads((model / "config.json").read_text())
    if tokens > config["max_position_embeddings"]:
        raise ValueError(
            f"shape {batch}x{tokens} asks for {tokens} tokens and {model} takes at most "
            f"{config['max_position_embeddings']}"
        )
    return list(np.random.default_rng(21).integers(config["vocab_size"], size=(batch, tokens)))


def model_directory(model: Path | None) -> Path:
    """The directory given, that of a model of random weights, or the one in the installed carrier package."""
    if model is not None and str(model) in RANDOM_MODELS:
        return random_model(str(model))
    if model is not None:
        if not (model / "model.safetensors").is_file():
            raise FileNotFoundError(f"--model {model} has no model.safetensors")
        return model
    carrier = find_spec(CARRIER)
    if carrier is None or carrier.origin is None:
        raise ModuleNotFoundError(
            f"encoders need a model: give --model DIRECTORY, or install {CARRIER} with --no-deps"
        )
    return Path(carrier.origin).parent / "model"


def ragged_workload(count: int, model: Path, precision: str = "float32") -> EncoderWorkload:
    """Sentences of Python's documentation. Libraries that pad take them sorted by length in characters."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    texts = list(documentation_sentences())
    if count > len(texts):
        raise ValueError(f"ragged{count} asks for more than the {len(texts)} sentences there are")
    chosen = [texts[index * len(texts) // count] for index in range(count)]
    sentences = [np.array(tokenizer.encode(text).ids, dtype=np.int64) for text in chosen]
    order = sorted(range(count), key=lambda index: len(chosen[index]))
    return EncoderWorkload(f"ragged{count}", model, sentences, order, precision)


def documentation_sentences() -> Iterator[str]:
    from pydoc_data.topics import topics

    for paragraph in re.split(r"\n\s*\n", "\n\n".join(topics.values())):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            if re.match(r"[A-Z].*[a-z].*[.!?]$", sentence):
                yield sentence
