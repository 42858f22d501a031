# SPDX-License-Identifier: Apache-2.0
"""The tensors of a checkpoint: names, shapes, types, shards."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.tiny_models import (
    QUERY,
    SENTENCES,
    build,
    change_config,
    change_tensors,
    load,
    shard,
    write_json,
)

from selfattn.text import ModelNotFoundError, WeightsMismatchError


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
