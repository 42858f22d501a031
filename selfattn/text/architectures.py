"""The supported architectures as tables: what their configuration and their tensors are called.

All of them are the encoder of "BERT" (Devlin et al., 2018): learned positions, post-norm layers, one
attention and one feed-forward block each. They differ in names, in where positions start, and in whether
there are token types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfattn.text.errors import UnsupportedArchitectureError
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
class Architecture:
    """How one family names its configuration (`keys`) and a layer's tensors (`layer`): ours -> its."""

    prefixes: tuple[str, ...]  # a checkpoint with a task head carries the encoder under the first of these
    layers: str  # what precedes the number of a layer
    layer: Mapping[str, str]
    keys: Mapping[str, str]
    token_types: bool = True
    positions_after_padding: bool = False  # position i is row pad_token_id + 1 + i


_BERT_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "activation": "hidden_act",
}
_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_BERT = Architecture(("bert.",), "encoder.layer.", _BERT_LAYER, _BERT_KEYS)
_ROBERTA = Architecture(
    ("roberta.",), "encoder.layer.", _BERT_LAYER, _BERT_KEYS, positions_after_padding=True
)
_DISTILBERT = Architecture(
    ("distilbert.",),
    "transformer.layer.",
    {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "feed_forward_norm": "output_layer_norm",
    },
    {
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "activation": "activation",
    },
    token_types=False,
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


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
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have."""
        return self.max_positions - (0 if self.pad_token_id is None else self.pad_token_id + 1)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and shape, (d_out, d_in) as checkpoints store them, of every tensor the network needs."""
        d_model, d_ff = self.hidden_size, self.intermediate_size
        yield "embeddings.word_embeddings.weight", (self.vocab_size, d_model)
        yield "embeddings.position_embeddings.weight", (self.max_positions, d_model)
        if self.token_types:
            yield "embeddings.token_type_embeddings.weight", (self.token_types, d_model)
        yield "embeddings.LayerNorm.weight", (d_model,)
        yield "embeddings.LayerNorm.bias", (d_model,)
        sizes = {"up": (d_ff, d_model), "down": (d_model, d_ff), "attention_norm": (d_model,)}
        sizes |= {"feed_forward_norm": (d_model,)}
        for index in range(self.num_layers):
            for role in self.architecture.layer:
                weight = sizes.get(role, (d_model, d_model))
                yield self.layer_tensor(index, role, "weight"), weight
                yield self.layer_tensor(index, role, "bias"), weight[:1]

    def layer_tensor(self, index: int, role: str, kind: str) -> str:
        """The checkpoint's name of a tensor: role as in `Architecture.layer`, kind "weight" or "bias"."""
        return f"{self.architecture.layers}{index}.{self.architecture.layer[role]}.{kind}"


def read_configuration(path: Path) -> Configuration:
    """Read and check config.json. Raises UnsupportedArchitectureError for a model not in the table."""
    config = read_json(path, dict)
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise UnsupportedArchitectureError(
            f"{path}: model_type={model_type!r} is not supported, only {', '.join(ARCHITECTURES)}"
        )
    _refuse_variants(config, path)
    keys = architecture.keys
    configuration = Configuration(
        model_type=str(model_type),
        hidden_size=get_int(config, keys["hidden_size"], path),
        num_layers=get_int(config, keys["num_layers"], path, maximum=MAX_LAYERS),
        num_heads=get_int(config, keys["num_heads"], path),
        intermediate_size=get_int(config, keys["intermediate_size"], path),
        activation=_activation(config.get(keys["activation"], "gelu"), path),
        layer_norm_eps=_epsilon(config.get("layer_norm_eps", 1e-12), path),
        vocab_size=get_int(config, "vocab_size", path),
        max_positions=get_int(config, "max_position_embeddings", path),
        token_types=get_int({"type_vocab_size": 2} | config, "type_vocab_size", path)
        * architecture.token_types,
        pad_token_id=_padding(config, path) if architecture.positions_after_padding else None,
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


def _padding(config: dict[str, Any], path: Path) -> int:
    return get_int({"pad_token_id": 1} | config, "pad_token_id", path, minimum=0)


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
