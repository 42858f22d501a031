# SPDX-License-Identifier: Apache-2.0
"""A model with a missing or a damaged file: one clear error that names it, and never a crash."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.tiny_models import QUERY, change_tensors, load, shard, write_json

from selfattn.text import ModelNotFoundError, TextEncoder


def load_or_error(directory: Path) -> TextEncoder | ValueError:
    try:
        return load(directory)
    except ValueError as error:
        return error


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    for name in (tmp_path / "none", str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(ModelNotFoundError, match=r"none|a/b/c"):
            TextEncoder.from_pretrained(name)
    assert issubclass(ModelNotFoundError, FileNotFoundError)


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json does not exist: copy or download"):
        load(tmp_path)


def test_a_file_instead_of_a_directory(directory: Path) -> None:
    with pytest.raises(ValueError, match="is a file: give the directory"):
        load(directory / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"]
)
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        load(directory)


def test_pickled_weights_are_never_opened(directory: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(directory / "opened"),)

    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        ModelNotFoundError, match=r"only pytorch_model\.bin, a pickle.*\.save_pretrained\(directory\)"
    ):
        load(directory)
    assert not (directory / "opened").exists()


JSON_FILES = [
    "config.json",
    "modules.json",
    "tokenizer.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
]


@pytest.fixture
def complete(directory: Path) -> Path:
    """Every JSON file that is ever read, each one in use."""
    shard(directory)
    write_json(directory / "sentence_bert_config.json", {"do_lower_case": False})
    write_json(directory / "tokenizer_config.json", {"model_max_length": 20})
    write_json(directory / "config_sentence_transformers.json", {"prompts": {}})
    assert load(directory).max_seq_length == 20
    return directory


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"\xff\xfe" + data,
        lambda data: b"[" * 100_000,
        lambda data: b'"text"',
        lambda data: b"\0" * len(data),
    ],
    ids=["empty", "half", "last byte", "not UTF-8", "deep", "not an object", "zeros"],
)
def test_damaged_json_is_named(complete: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = complete / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*: copy or download the model again"):
        load(complete)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_in_place_of_a_file(directory: Path, name: str) -> None:
    (directory / name).unlink()
    (directory / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        load(directory)


def test_an_absurdly_large_file_is_not_read(directory: Path) -> None:
    with (directory / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(ValueError, match=r"config\.json holds 1099511627776 bytes, more than the 67108864"):
        load(directory)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(directory: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a regular file"):
        load(directory)


def test_weights_truncated_anywhere(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    lengths = [
        0,
        1,
        7,
        8,
        9,
        header // 2,
        header - 1,
        header,
        header + 1,
        len(data) // 2,
        len(data) - 4,
        len(data) - 1,
    ]
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=f"model.safetensors is damaged.*the file holds {length} bytes, .*"
        ):
            load(directory)
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"holds {len(data) - 1} bytes, its header describes {len(data)}"):
        load(directory)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=f"holds {len(data) + 1} bytes, its header describes {len(data)}"):
        load(directory)


def test_weights_with_one_bit_flipped_in_the_header(directory: Path) -> None:
    """Each flip is found, or leaves the tensors as they were."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    expected = load(directory).encode("cat")
    failures = 0
    for bit in range(0, header * 8, 37):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        result = load_or_error(directory)
        if isinstance(result, TextEncoder):
            np.testing.assert_array_equal(result.encode("cat"), expected)
        else:
            assert str(directory) in str(result)
            failures += 1
    assert failures > header * 8 // 37 // 2


@pytest.mark.parametrize("size", [2**64 - 1, 2**64 - 8, 2**63, 100_000_001, 0])
def test_weights_with_an_absurd_header_size(directory: Path, size: int) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(directory)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(directory: Path, value: float) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[QUERY][3, 4:7] = value

    change_tensors(directory, spoil)
    with pytest.raises(ValueError, match=rf"{QUERY} holds 3 NaN or Inf among its 256 values"):
        load(directory)


def test_opposite_infinities_and_huge_finite_weights_are_told_apart(directory: Path) -> None:
    def huge(tensors: dict[str, Any]) -> None:
        tensors[QUERY][:] = np.finfo(np.float32).max

    change_tensors(directory, huge)
    load(directory)

    def opposite(tensors: dict[str, Any]) -> None:
        tensors[QUERY][0, :2] = np.inf, -np.inf

    change_tensors(directory, opposite)
    with pytest.raises(ValueError, match="holds 2 NaN or Inf"):
        load(directory)


@pytest.mark.parametrize("package", ["tokenizers", "safetensors", "ml_dtypes", "huggingface_hub", "tqdm"])
def test_a_package_that_is_not_installed(
    directory: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        tensors.update({name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()})

    change_tensors(directory, narrow)
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)  # its parts too: another test may have imported them
    name = "owner/model" if package == "huggingface_hub" else directory
    with pytest.raises(ImportError, match=rf"need the package '{package}': pip install 'selfattn\[text\]'"):
        TextEncoder.from_pretrained(name).encode("cat", show_progress_bar=True)
