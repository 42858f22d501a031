# SPDX-License-Identifier: Apache-2.0
"""Models of well-known sizes with random weights: as fast as the real ones, without a download."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "bert-base": {  # "BERT" (Devlin et al., 2018), the smaller of its two models
        "model_type": "bert",
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
}


def random_model(name: str) -> Path:
    """A directory like that of a real model, made once in a process; it goes when the process ends."""
    directory = Path(models().name) / name
    if not directory.exists():
        directory.mkdir()
        write_model(directory, RANDOM_MODELS[name])
    return directory


@cache
def models() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="selfattn-bench-")


def write_model(directory: Path, config: dict[str, Any]) -> None:
    """config.json, model.safetensors, and a tokenizer that knows no word: the ids are random too."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    from selfattn.text.configuration import read_configuration

    (directory / "config.json").write_text(json.dumps(config))
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "pooling"}]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "pooling").mkdir()
    (directory / "pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(directory / "tokenizer.json"))  # noqa: S106
    rng = np.random.default_rng(23)
    tensors = {
        name: weights(name, shape, rng)
        for name, shape in read_configuration(directory / "config.json").shapes()
    }
    save_file(tensors, directory / "model.safetensors")


def weights(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Float32 numbers that keep what flows through all layers at about 1: matrices of N(0, 1 / inputs)."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 2 and "embeddings" not in name:
        return values / np.float32(np.sqrt(shape[1]))
    return np.float32("LayerNorm.weight" in name) + np.float32(0.02) * values
