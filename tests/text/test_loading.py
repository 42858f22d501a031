"""The layouts and spellings of models that are understood."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tiny_models import SENTENCES, add_dense, change_tensors, shard, write_json

from selfattn.text import TextEncoder


def load(directory: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(directory)


def test_names_of_task_models_and_of_old_checkpoints(directory: Path) -> None:
    expected = load(directory).encode(SENTENCES)

    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            tensors[f"bert.{old}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
        tensors["bert.pooler.dense.weight"] = np.full((16, 16), np.nan, np.float32)
        tensors["cls.predictions.bias"] = np.zeros(3, np.float32)

    change_tensors(directory, rename)
    np.testing.assert_array_equal(load(directory).encode(SENTENCES), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(directory: Path, dtype: Any) -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        tensors.update({name: tensor.astype(dtype) for name, tensor in tensors.items()})

    def widen(tensors: dict[str, Any]) -> None:
        tensors.update({name: tensor.astype(np.float32) for name, tensor in tensors.items()})

    change_tensors(directory, narrow)
    narrow_result = load(directory).encode(SENTENCES)
    change_tensors(directory, widen)
    np.testing.assert_array_equal(load(directory).encode(SENTENCES), narrow_result)


def test_shards(directory: Path) -> None:
    expected = load(directory).encode(SENTENCES)
    shard(directory)
    np.testing.assert_array_equal(load(directory).encode(SENTENCES), expected)


def test_an_old_layout_with_the_encoder_in_a_folder_of_its_own(directory: Path) -> None:
    model = load(directory)
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(directory / "modules.json", modules)
    (directory / "0_Transformer").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (directory / name).rename(directory / "0_Transformer" / name)
    (directory / "sentence_bert_config.json").unlink()
    write_json(directory / "0_Transformer" / "sentence_roberta_config.json", {"max_seq_length": 9})
    old = load(directory)
    assert old.max_seq_length == 9
    np.testing.assert_array_equal(old.encode("unhappy cat"), model.encode("unhappy cat"))


def test_without_modules_the_mean_is_taken(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (directory / "modules.json").unlink()
    model = load(directory)
    assert "describes no pooling" in caplog.text
    assert repr(model).endswith("16d, mean)")
    rows = model.encode("cat", output_value="token_embeddings")
    np.testing.assert_allclose(model.encode("cat"), rows.mean(axis=0), rtol=0, atol=1e-6)


def test_the_weights_are_held_in_memory(directory: Path) -> None:
    model = load(directory)
    expected = model.encode(SENTENCES)
    for path in directory.rglob("*.*"):
        path.write_bytes(b"")
    np.testing.assert_array_equal(model.encode(SENTENCES), expected)


def test_a_dense_module(directory: Path, rng: np.random.Generator) -> None:
    weight, bias = rng.standard_normal((3, 16)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    pooled = load(directory).encode(SENTENCES)
    add_dense(directory, {"linear.weight": weight, "linear.bias": bias})
    model = load(directory)
    assert model.embedding_dim == 3
    expected = np.tanh(pooled.astype(np.float64) @ weight.T + bias)
    np.testing.assert_allclose(model.encode(SENTENCES), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(model.encode(SENTENCES)[2], model.encode(SENTENCES[2]))
