# SPDX-License-Identifier: Apache-2.0
"""BERT in float64 on NumPy, from the file of weights alone: what every encoder is verified against."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfattn import reference
from selfattn.attention.arrays import Array


def token_embeddings(directory: Path, sentences: Sequence[Array]) -> Array:
    """The last hidden state of every token, (tokens, hidden_size), the sentences one after another."""
    config = json.loads((directory / "config.json").read_text())
    if config.get("model_type") != "bert":
        raise ValueError(f"{directory} is a {config.get('model_type')} model; encoders are measured on BERT")
    return Bert(directory, config)(sentences)


class Bert:
    """The original encoder (Devlin et al., 2018): norms after the residuals, gelu, one token type."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        from safetensors.numpy import load_file

        tensors = load_file(directory / "model.safetensors")
        self.tensors = {name.removeprefix("bert."): x.astype(np.float64) for name, x in tensors.items()}
        self.heads = config["num_attention_heads"]
        self.layers = config["num_hidden_layers"]
        self.eps = config.get("layer_norm_eps", 1e-12)
        if config["hidden_act"] != "gelu":
            raise ValueError(f"{directory} has hidden_act={config['hidden_act']!r}; it must be gelu")

    def __call__(self, sentences: Sequence[Array]) -> Array:
        tables = [
            self.tensors[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        ]
        ids = np.concatenate(sentences)
        positions = np.concatenate([np.arange(len(sentence)) for sentence in sentences])
        x = self.norm(tables[0][ids] + tables[1][positions] + tables[2][0], "embeddings.LayerNorm")
        ends = np.cumsum([len(sentence) for sentence in sentences])[:-1]
        for index in range(self.layers):
            layer = f"encoder.layer.{index}."
            query, key, value = (
                self.linear(x, f"{layer}attention.self.{role}") for role in ("query", "key", "value")
            )
            parts = zip(*(np.split(rows, ends) for rows in (query, key, value)), strict=True)
            context = np.concatenate([self.attention(*part) for part in parts])
            x = self.norm(
                x + self.linear(context, f"{layer}attention.output.dense"),
                f"{layer}attention.output.LayerNorm",
            )
            hidden = gelu(self.linear(x, f"{layer}intermediate.dense"))
            x = self.norm(x + self.linear(hidden, f"{layer}output.dense"), f"{layer}output.LayerNorm")
        return x

    def attention(self, *rows: Array) -> Array:
        """Of one sentence: query, key and value (length, hidden_size) -> (length, hidden_size)."""
        length = len(rows[0])
        heads = (x.reshape(length, self.heads, -1).swapaxes(0, 1) for x in rows)
        joined: Array = reference.attention(*heads).swapaxes(0, 1).reshape(length, -1)
        return joined

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, x: Array, name: str) -> Array:
        return reference.layer_norm(
            x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps=self.eps
        )


def gelu(x: Array) -> Array:
    """x * Phi(x). As `reference.gelu`, in half the time: there are millions of numbers here."""
    erf = np.fromiter(map(math.erf, (x / math.sqrt(2)).ravel().tolist()), np.float64, x.size)
    out: Array = 0.5 * x * (1 + erf.reshape(x.shape))
    return out
