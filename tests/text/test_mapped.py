# SPDX-License-Identifier: Apache-2.0
"""The matrices of a loaded model lie in its file until someone asks for them; the file may meet any fate."""

import copy
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import FAMILIES, SENTENCES, build, change_tensors, load, shard

from selfattn.train import flatten

NAME = "encoder.layers.1.attention.query_weight"


def resident_kilobytes(directory: Path) -> list[int]:
    """Of each mapping of a file of weights, as far as this process has it in memory."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            inside = str(directory) in line and ".safetensors" in line
        elif inside and line.startswith("Rss:"):
            found.append(int(line.split()[1]))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_matrices_are_given_back_when_packed_and_unmapped_when_asked_for(directory: Path) -> None:
    model = load(directory)
    model.encode(SENTENCES)
    assert resident_kilobytes(directory) == [0]
    weights = flatten(model.network.weights())
    assert resident_kilobytes(directory) == []
    assert not any(array.flags.writeable for array in weights.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_without_float32_matrices_are_not_kept(directory: Path) -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        tensors.update({name: tensor.astype(np.float16) for name, tensor in tensors.items()})

    change_tensors(directory, narrow)
    model = load(directory)
    assert resident_kilobytes(directory) == []
    assert len(model.encode(SENTENCES)) == len(SENTENCES)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_same_before_and_after_the_network_is_asked_for(
    tmp_path: Path, family: str
) -> None:
    model = load(build(tmp_path, family))
    expected = model.encode(SENTENCES)
    network = model.network
    assert model.network is network
    np.testing.assert_array_equal(model.encode(SENTENCES), expected)
    np.testing.assert_array_equal(model.replace(network.weights()).encode(SENTENCES), expected)


def test_a_model_is_copied_and_pickled_whole(directory: Path) -> None:
    model = load(directory)
    data, twin = pickle.dumps(model), copy.deepcopy(model)
    shutil.rmtree(directory)
    for other in (twin, pickle.loads(data)):
        np.testing.assert_array_equal(other.encode(SENTENCES), model.encode(SENTENCES))
        np.testing.assert_array_equal(
            flatten(other.network.weights())[NAME], flatten(model.network.weights())[NAME]
        )


def test_a_file_removed_or_replaced(directory: Path) -> None:
    path = directory / "model.safetensors"
    expected, map_expected = flatten(load(directory).network.weights()), load(directory).attention_map("cat")
    first, second = load(directory), load(directory)
    path.rename(directory / "other")
    path.write_bytes(b"another model")
    np.testing.assert_array_equal(first.attention_map("cat").weights, map_expected.weights)
    path.unlink()
    (directory / "other").unlink()
    for name, array in flatten(second.network.weights()).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_cut_off_in_place(directory: Path, sharded: bool) -> None:
    """Whoever embeds does not notice; the others get an error."""
    if sharded:
        shard(directory)
    model = load(directory)
    expected = model.encode(SENTENCES)
    path = max(directory.glob("model*.safetensors"))
    os.truncate(path, 0)
    np.testing.assert_array_equal(model.encode(SENTENCES), expected)
    for use in (
        lambda: model.network,
        lambda: model.attention_map("cat"),
        lambda: model.save_pretrained(directory / "new"),
        lambda: pickle.dumps(model),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} was written to after .*: load the model again"):
            use()
    np.testing.assert_array_equal(model.encode(SENTENCES), expected)


def test_a_file_changed_in_place(directory: Path) -> None:
    model = load(directory)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + np.float32(1).tobytes())
    with pytest.raises(ValueError, match=r"model\.safetensors was written to after"):
        _ = model.network


def test_a_network_asked_for_outlives_its_file(directory: Path) -> None:
    model = load(directory)
    network = model.network
    before = {name: array.copy() for name, array in flatten(network.weights()).items()}
    os.truncate(directory / "model.safetensors", 0)
    for name, array in flatten(network.weights()).items():
        np.testing.assert_array_equal(array, before[name])
