# SPDX-License-Identifier: Apache-2.0
"""config.json: what it may say, and what it may not."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import build, change_config, load

from selfattn.text import UnsupportedArchitectureError


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 0, "hidden_size=0 is not between 1 and"),
        ("hidden_size", "16", "hidden_size='16' is not an integer"),
        ("hidden_size", 10**15, "hidden_size=1000000000000000 is not between 1 and"),
        ("hidden_size", 1 << 30, "word_embedding_dimension=16 does not match the encoder's 1073741824"),
        ("vocab_size", 1 << 30, r"has shape \(\d+, 16\), the configuration says \(1073741824, 16\)"),
        ("num_hidden_layers", 10**9, "num_hidden_layers=1000000000 is not between 1 and 1024"),
        ("num_hidden_layers", True, "num_hidden_layers=True is not an integer"),
        ("num_attention_heads", 0, "num_attention_heads=0 is not between"),
        ("num_attention_heads", 3, "hidden_size=16 is not a multiple of num_attention_heads=3"),
        ("intermediate_size", None, "intermediate_size=None is not an integer"),
        ("intermediate_size", 33, r"the configuration says \(33,"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps=nan is not a finite number"),
        ("layer_norm_eps", -1e-3, "layer_norm_eps=-0.001 is not a finite number"),
        ("layer_norm_eps", "small", "layer_norm_eps='small' is not a finite number"),
        ("vocab_size", 20, r"tokenizer\.json uses token number \d+, but config\.json has only vocab_size=20"),
        ("max_position_embeddings", -1, "max_position_embeddings=-1 is not between"),
    ],
)
def test_a_configuration_that_makes_no_sense(directory: Path, key: str, value: Any, message: str) -> None:
    change_config(directory, **{key: value})
    with pytest.raises(ValueError, match=message):
        load(directory)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model_type",
            "t5",
            "model_type='t5' is not supported, only bert, camembert, distilbert, roberta, xlm-roberta",
        ),
        ("model_type", None, "model_type=None is not supported"),
        ("model_type", ["bert"], r"model_type=\['bert'\] is not supported"),
        ("hidden_act", "mish", "the activation 'mish' is not supported, only gelu,"),
        (
            "position_embedding_type",
            "relative_key",
            "position_embedding_type='relative_key' is not supported",
        ),
        ("is_decoder", True, "is_decoder=True is not supported"),
    ],
)
def test_an_unsupported_architecture(directory: Path, key: str, value: Any, message: str) -> None:
    change_config(directory, **{key: value})
    with pytest.raises(UnsupportedArchitectureError, match=message):
        load(directory)
    assert issubclass(UnsupportedArchitectureError, ValueError)


def test_roberta_without_a_position_left(tmp_path: Path) -> None:
    change_config(build(tmp_path, "roberta"), pad_token_id=41)
    with pytest.raises(
        ValueError, match="max_position_embeddings=42 leaves no position after pad_token_id=41"
    ):
        load(tmp_path)
