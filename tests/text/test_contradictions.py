"""A model whose files contradict each other, make no sense, or ask for what is not built."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import QUERY, add_dense, build, change_config, change_tensors, shard, write_json

from selfattn.text import ModelNotFoundError, TextEncoder, UnsupportedArchitectureError, WeightsMismatchError


def load(directory: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(directory)


def test_a_missing_and_a_surplus_tensor(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(
        WeightsMismatchError, match=rf"describes 37 tensors \(2 layers\), but 1 are missing .*{QUERY}"
    ):
        load(directory)
    build(directory, num_hidden_layers=3)
    change_config(directory, num_hidden_layers=2)
    with pytest.raises(WeightsMismatchError, match=r"but 16 surplus ones are in .*encoder\.layer\.2"):
        load(directory)
    assert issubclass(WeightsMismatchError, ValueError)


def test_a_tensor_under_two_names(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update({f"bert.{QUERY}": tensors[QUERY] + 1}))
    with pytest.raises(WeightsMismatchError, match=f"1 are repeated .*{QUERY}"):
        load(directory)


def test_a_tensor_of_another_shape_or_type(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update({QUERY: tensors[QUERY][:15]}))
    with pytest.raises(
        WeightsMismatchError, match=rf"{QUERY} has shape \(15, 16\), the configuration says \(16, 16\)"
    ):
        load(directory)
    change_tensors(directory, lambda tensors: tensors.update({QUERY: np.zeros((16, 16), np.int32)}))
    with pytest.raises(WeightsMismatchError, match=rf"{QUERY} has type I32, expected one of F32, F16, BF16"):
        load(directory)


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


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            ["Transformer", "Pooling", "CNN"],
            "the module 'CNN' is not supported, only Transformer, Pooling, Dense",
        ),
        (["Transformer", "Normalize"], "the order Transformer, Normalize is not supported"),
        (["Pooling"], "the order Pooling is not supported"),
        (["Transformer", "Pooling", "Pooling"], "the order Transformer, Pooling, Pooling is not supported"),
        ([], r"the order \(none\) is not supported"),
    ],
)
def test_modules_that_are_not_supported(directory: Path, modules: list[str], message: str) -> None:
    write_json(directory / "modules.json", [{"type": f"x.{kind}", "path": "1_Pooling"} for kind in modules])
    with pytest.raises(UnsupportedArchitectureError, match=f"modules.json: {message}"):
        load(directory)


@pytest.mark.parametrize("entry", [3, {"type": "x.Transformer"}, {"type": 1, "path": ""}, {"path": ""}])
def test_modules_without_a_type_or_a_path(directory: Path, entry: Any) -> None:
    write_json(directory / "modules.json", [entry])
    with pytest.raises(ValueError, match=r"modules\.json: the entry .* has no type and path"):
        load(directory)


@pytest.mark.parametrize("path", ["../other", "/etc"])
def test_modules_outside_of_the_directory(directory: Path, path: str) -> None:
    write_json(
        directory / "modules.json",
        [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": path}],
    )
    with pytest.raises(ValueError, match=r"modules\.json: the path .* leads out of the model's directory"):
        load(directory)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": "median"}, "the pooling mode 'median' is not one of cls, max, mean"),
        ({"pooling_mode": ["mean", 3]}, "the pooling mode 3 is not one of"),
        ({"pooling_mode": {"a": 1}}, "the pooling mode {'a': 1} is not one of"),
        ({"word_embedding_dimension": 384}, "word_embedding_dimension=384 does not match the encoder's 16"),
    ],
)
def test_pooling_that_makes_no_sense(directory: Path, config: dict[str, Any], message: str) -> None:
    write_json(directory / "1_Pooling" / "config.json", config)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        load(directory)


def test_dense_modules_that_do_not_fit(directory: Path) -> None:
    weight = np.zeros((3, 16), np.float32)
    add_dense(directory, {"linear.weight": weight})
    with pytest.raises(
        WeightsMismatchError, match=r"3_Dense/model\.safetensors lacks 1 of 2 tensors, first 'linear\.bias'"
    ):
        load(directory)
    build(directory)
    add_dense(directory, {"linear.weight": weight}, bias=False, in_features=8)
    with pytest.raises(ValueError, match="in_features=8 does not match the 16"):
        load(directory)
    build(directory)
    add_dense(
        directory,
        {"linear.weight": weight},
        bias=False,
        activation_function="torch.nn.modules.activation.Mish",
    )
    with pytest.raises(
        UnsupportedArchitectureError, match=r"3_Dense/config\.json: .*Mish.* only the activations Identity"
    ):
        load(directory)


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/tmp/model.safetensors", "sub/x.safetensors", "x.bin", 3]
)
def test_shards_elsewhere(directory: Path, place: Any) -> None:
    weight_map = shard(directory) | {QUERY: place}
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(
        ValueError, match=rf"index\.json places '{QUERY}' in .*, not in a \.safetensors file beside"
    ):
        load(directory)


def test_shards_that_do_not_hold_what_the_index_says(directory: Path) -> None:
    weight_map = shard(directory)
    first, second = sorted(set(weight_map.values()))
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map | {QUERY: first}})
    with pytest.raises(WeightsMismatchError, match=rf"{first} lacks 1 of 10 tensors, first '{QUERY}'"):
        load(directory)
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})
    (directory / second).unlink()
    with pytest.raises(ModelNotFoundError, match=second):
        load(directory)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}})
    with pytest.raises(ValueError, match=r"index\.json has no weight_map"):
        load(directory)


@pytest.mark.parametrize("length", [0, -3, "long", True, 2.5])
def test_a_max_seq_length_that_makes_no_sense(directory: Path, length: Any) -> None:
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": length})
    with pytest.raises(
        ValueError, match=r"sentence_bert_config\.json: the maximum sequence length .* not a positive"
    ):
        load(directory)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompts": ["query: "]}, "prompts is not an object"),
        ({"prompts": {"query": 3}}, "prompts is not an object whose values are strings"),
        ({"default_prompt_name": "query"}, r"default_prompt_name='query' is not one of its prompts \[\]"),
        ({"truncate_dim": 0}, "truncate_dim=0 is not a positive integer"),
    ],
)
def test_prompts_that_make_no_sense(directory: Path, config: dict[str, Any], message: str) -> None:
    write_json(directory / "config_sentence_transformers.json", config)
    with pytest.raises(ValueError, match=f"config_sentence_transformers.json: {message}"):
        load(directory)
