# SPDX-License-Identifier: Apache-2.0
"""modules.json, as sentence-transformers writes it: what follows the encoder, up to the embedding."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfattn._native import pointwise as _pointwise
from selfattn.text.checkpoint import load_tensors, refuse_pickle
from selfattn.text.errors import UnsupportedArchitectureError
from selfattn.text.files import get_int, read_json
from selfattn.text.pooling import Floats, Offsets, normalize, pool, read_pooling

logger = logging.getLogger("selfattn")

KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")
# torch.nn modules by their last name; computed in float64 and rounded once, so that no vector width shows
DENSE_ACTIVATIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0.0),
}


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ weight + bias); weight (d_in, d_out)."""

    weight: Floats
    bias: Floats | None
    activation: str

    def __call__(self, x: Floats) -> Floats:
        y = _pointwise.linear(x, self.weight, self.bias, None, 1)
        return DENSE_ACTIVATIONS[self.activation](y.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class SentencePooling:
    """The modules after the encoder: pooling, then any of Dense and Normalize, in order."""

    modes: tuple[str, ...]
    include_prompt: bool
    steps: tuple[Dense | Callable[[Floats], Floats], ...]
    embedding_dim: int

    def __call__(self, tokens: Floats, cu_seqlens: Offsets, *, prompt_length: int = 0) -> Floats:
        """Packed token embeddings (total, d_model) -> sentence embeddings (batch, embedding_dim)."""
        x = pool(tokens, cu_seqlens, self.modes, skip=0 if self.include_prompt else prompt_length)
        for step in self.steps:
            x = step(x)
        return x

    def __str__(self) -> str:
        names = ["dense" if isinstance(step, Dense) else "normalize" for step in self.steps]
        return " -> ".join(["+".join(self.modes), *names])


def read_modules(directory: Path) -> list[dict[str, str]]:
    """The entries of modules.json: {"type": the last part of its name, "path": its folder}."""
    path = directory / "modules.json"
    if not path.exists():
        return [{"type": "Transformer", "path": ""}]
    modules = []
    for entry in read_json(path, list):
        kind, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise ValueError(f"{path}: the entry {entry!r} has no type and path")
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ValueError(f"{path}: the path {folder!r} leads out of the model's directory")
        modules.append({"type": kind.rpartition(".")[2], "path": folder})
    return modules


def check_modules(modules: list[dict[str, str]], directory: Path) -> None:
    """Raise UnsupportedArchitectureError unless it is Transformer, Pooling, then Dense or Normalize."""
    types = [module["type"] for module in modules]
    for kind in types:
        if kind not in KNOWN:
            raise UnsupportedArchitectureError(
                f"{directory / 'modules.json'}: the module {kind!r} is not supported, only {', '.join(KNOWN)}"
            )
    if (
        types[:1] != ["Transformer"]
        or types[1:2] not in ([], ["Pooling"])
        or {"Transformer", "Pooling"} & set(types[2:])
    ):
        raise UnsupportedArchitectureError(
            f"{directory / 'modules.json'}: the order {', '.join(types) or '(none)'} is not supported, "
            "expected Transformer, Pooling, then any of Dense and Normalize"
        )


def load_sentence_pooling(modules: list[dict[str, str]], directory: Path, d_model: int) -> SentencePooling:
    """The modules after the Transformer, loaded. Without any, mean pooling, as in sentence-transformers."""
    modes: tuple[str, ...] = ("mean",)
    include_prompt = True
    steps: list[Any] = []
    if len(modules) == 1:
        logger.warning("%s describes no pooling: sentence embeddings are the mean of the tokens'", directory)
    dim = d_model
    for module in modules[1:]:
        folder = directory / module["path"]
        if module["type"] == "Pooling":
            modes, include_prompt = read_pooling(folder / "config.json", d_model)
            dim = d_model * len(modes)
        elif module["type"] == "Dense":
            steps.append(_load_dense(folder, dim))
            dim = steps[-1].weight.shape[1]
        else:
            steps.append(normalize)
    return SentencePooling(modes, include_prompt, tuple(steps), dim)


def _load_dense(folder: Path, d_in: int) -> Dense:
    path = folder / "config.json"
    config = read_json(path, dict)
    if config.get("in_features") != d_in:
        raise ValueError(
            f"{path}: in_features={config.get('in_features')!r} does not match the {d_in} that come in"
        )
    d_out = get_int(config, "out_features", path)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in DENSE_ACTIVATIONS or config.get("use_residual"):
        raise UnsupportedArchitectureError(
            f"{path}: {config} is not supported, only the activations {', '.join(DENSE_ACTIVATIONS)} and no "
            "residual"
        )
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (d_out, d_in)}
    if config.get("bias", True):
        shapes["linear.bias"] = (d_out,)
    refuse_pickle(folder)
    tensors = load_tensors(folder / "model.safetensors", shapes)
    return Dense(tensors["linear.weight"].T, tensors.get("linear.bias"), activation)
