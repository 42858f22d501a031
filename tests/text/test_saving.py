# SPDX-License-Identifier: Apache-2.0
"""A model with other weights, saved and loaded again."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_models import (
    FAMILIES,
    SENTENCES,
    add_dense,
    build,
    change_config,
    change_tensors,
    load,
    shard,
    write_json,
)

from selfattn import TextEncoder
from selfattn.train import flatten, unflatten

TABLE = "embeddings.word_embeddings.weight"


def moved(model: TextEncoder, rng: np.random.Generator) -> TextEncoder:
    """The model with every weight a little elsewhere."""
    weights = model.network.weights()
    flat = {
        name: array + 0.1 * rng.standard_normal(array.shape, dtype=np.float32)
        for name, array in flatten(weights).items()
    }
    return model.replace(unflatten(flat, weights))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return build(tmp_path / "model", request.param)


def test_what_was_saved_gives_the_same_bits(family: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    model = moved(load(family), rng)
    model.max_seq_length = 7
    saved = tmp_path / "new" / "saved"
    model.save_pretrained(saved)
    again = load(saved)
    assert again.max_seq_length == 7
    np.testing.assert_array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    expected = flatten(model.network.weights())
    for name, array in flatten(again.network.weights()).items():
        np.testing.assert_array_equal(array, expected[name])
    old, new = load_file(family / "model.safetensors"), load_file(saved / "model.safetensors")
    assert {name: t.shape for name, t in new.items()} == {name: t.shape for name, t in old.items()}
    assert not np.array_equal(new[TABLE], old[TABLE])
    assert {path.name for path in tmp_path.iterdir()} == {"model", "new"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["saved"]


def test_rows_that_the_network_does_not_use_stay(tmp_path: Path, rng: np.random.Generator) -> None:
    for family, table, unused in (
        ("roberta", "embeddings.position_embeddings.weight", slice(2)),
        ("bert", "embeddings.token_type_embeddings.weight", slice(1, 2)),
    ):
        source, saved = build(tmp_path / family, family), tmp_path / f"{family} saved"
        moved(load(source), rng).save_pretrained(saved)
        old, new = (load_file(path / "model.safetensors")[table] for path in (source, saved))
        np.testing.assert_array_equal(new[unused], old[unused])
        assert (new != old).all(axis=1).sum() == len(old) - len(old[unused])


def test_a_model_of_many_files_is_saved_whole(
    directory: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Shards, a prefix, half precision, a task head; a folder for the encoder, a dense module; prompts."""
    change_tensors(directory, lambda t: t.update({"classifier.weight": np.ones((2, 16), np.float32)}))
    change_tensors(directory, lambda t: t.update({n: t[n].astype(np.float16) for n in t}))
    change_tensors(directory, lambda t: [t.update({f"bert.{n}": t.pop(n)}) for n in list(t)])
    change_config(directory, torch_dtype="float16")
    shard(directory)
    add_dense(directory, {"linear.weight": np.ones((3, 16), "f4"), "linear.bias": np.ones(3, "f4")})
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(directory / "modules.json", modules)
    (directory / "0_Transformer").mkdir()
    for path in (*directory.glob("model*"), directory / "config.json", directory / "tokenizer.json"):
        path.rename(directory / "0_Transformer" / path.name)
    write_json(directory / "config_sentence_transformers.json", {"prompts": {"query": "hot "}})
    (directory / "pytorch_model.bin").write_bytes(b"a pickle")

    model = moved(load(directory), rng)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.prompts == {"query": "hot "}
    np.testing.assert_array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    files = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*.*")}
    assert {name for name in files if "model" in name} == {
        "0_Transformer/model.safetensors",
        "3_Dense/model.safetensors",
    }
    assert "pytorch_model.bin" not in files
    assert json.loads((tmp_path / "saved/0_Transformer/config.json").read_text())["torch_dtype"] == "float32"


def test_nothing_is_overwritten_and_nothing_is_left_half(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(directory)
    before = {path: path.read_bytes() for path in directory.rglob("*.*")}
    for target in (directory, directory / "config.json"):
        with pytest.raises(FileExistsError, match="is there already; save to a new directory"):
            model.save_pretrained(target)
    empty = tmp_path / "empty"
    empty.mkdir()

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(empty)
    assert not any(empty.iterdir())
    monkeypatch.undo()
    model.save_pretrained(empty)
    np.testing.assert_array_equal(load(empty).encode("cat"), model.encode("cat"))
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.glob("*.part"))


def test_a_model_can_be_saved_from_another_working_directory(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    model = load(Path(directory.name))
    (directory / "elsewhere").mkdir()
    monkeypatch.chdir(directory / "elsewhere")
    model.save_pretrained("saved")
    np.testing.assert_array_equal(load(directory / "elsewhere" / "saved").encode("cat"), model.encode("cat"))
