# SPDX-License-Identifier: Apache-2.0
"""config.json, read and checked by the names that the model's family has in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfattn.text.errors import UnsupportedArchitectureError
from selfattn.text.families import FAMILIES
from selfattn.text.families.family import Family
from selfattn.text.files import get_int, read_json

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
MAX_LAYERS = 1024  # far above any real model: an absurd count is refused before anything is built from it


@dataclass(frozen=True)
class Configuration:
    """The part of config.json that shapes the network, checked."""

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    layer_norm_eps: float
    vocab_size: int
    max_positions: int  # rows of the position table
    token_types: int  # rows of the token type table, 0 when there is none
    pad_token_id: int | None  # set when positions start after it

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have."""
        return self.max_positions - (0 if self.pad_token_id is None else self.pad_token_id + 1)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and shape, (d_out, d_in) as checkpoints store them, of every tensor the network needs."""
        d_model, d_ff = self.hidden_size, self.intermediate_size
        yield self.embedding_tensor("words", "weight"), (self.vocab_size, d_model)
        yield self.embedding_tensor("positions", "weight"), (self.max_positions, d_model)
        if self.token_types:
            yield self.embedding_tensor("token_types", "weight"), (self.token_types, d_model)
        yield self.embedding_tensor("norm", "weight"), (d_model,)
        yield self.embedding_tensor("norm", "bias"), (d_model,)
        sizes = {"up": (d_ff, d_model), "down": (d_model, d_ff), "attention_norm": (d_model,)}
        sizes |= {"feed_forward_norm": (d_model,)}
        for index in range(self.num_layers):
            for role in self.family.layer:
                weight = sizes.get(role, (d_model, d_model))
                yield self.layer_tensor(index, role, "weight"), weight
                yield self.layer_tensor(index, role, "bias"), weight[:1]

    def embedding_tensor(self, role: str, kind: str) -> str:
        """The checkpoint's name of a tensor: role as in `Family.embeddings`, kind "weight" or "bias"."""
        return f"{self.family.embeddings[role]}.{kind}"

    def layer_tensor(self, index: int, role: str, kind: str) -> str:
        """The checkpoint's name of a tensor: role as in `Family.layer`, kind "weight" or "bias"."""
        return f"{self.family.layers}{index}.{self.family.layer[role]}.{kind}"


def read_configuration(path: Path) -> Configuration:
    """Read and check config.json. Raises UnsupportedArchitectureError for a model of another family."""
    config = read_json(path, dict)
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedArchitectureError(
            f"{path}: model_type={model_type!r} is not supported, only {', '.join(sorted(FAMILIES))}"
        )
    _refuse_variants(config, path)
    keys = family.keys
    config = {keys[name]: value for name, value in family.defaults.items()} | config

    def integer(name: str, **limits: int) -> int:
        return get_int(config, keys[name], path, **limits)

    configuration = Configuration(
        model_type=str(model_type),
        hidden_size=integer("hidden_size"),
        num_layers=integer("num_layers", maximum=MAX_LAYERS),
        num_heads=integer("num_heads"),
        intermediate_size=integer("intermediate_size"),
        activation=_activation(config[keys["activation"]], path),
        layer_norm_eps=_epsilon(config[keys["layer_norm_eps"]], path),
        vocab_size=integer("vocab_size"),
        max_positions=integer("max_positions"),
        token_types=integer("token_types") if "token_types" in keys else 0,
        pad_token_id=integer("pad_token_id", minimum=0) if "pad_token_id" in keys else None,
    )
    _check_sizes(configuration, keys, path)
    return configuration


def _refuse_variants(config: dict[str, Any], path: Path) -> None:
    """Refuse the options that change the network and are not built, rather than ignore them."""
    for key, built in {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }.items():
        if config.get(key, built) not in (built, None):
            raise UnsupportedArchitectureError(
                f"{path}: {key}={config[key]!r} is not supported, only {built!r}"
            )


def _activation(name: Any, path: Path) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedArchitectureError(
            f"{path}: the activation {name!r} is not supported, only {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _epsilon(value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{path}: layer_norm_eps={value!r} is not a finite number of at least 0")
    return float(value)


def _check_sizes(configuration: Configuration, keys: Mapping[str, str], path: Path) -> None:
    if configuration.hidden_size % configuration.num_heads:
        raise ValueError(
            f"{path}: {keys['hidden_size']}={configuration.hidden_size} is not a multiple of "
            f"{keys['num_heads']}={configuration.num_heads}"
        )
    if configuration.max_length < 1:
        raise ValueError(
            f"{path}: max_position_embeddings={configuration.max_positions} leaves no position after "
            f"pad_token_id={configuration.pad_token_id}"
        )
