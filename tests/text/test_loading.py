# SPDX-License-Identifier: Apache-2.0
"""The layouts and spellings of models that are understood."""

import json
from pathlib import Path

import numpy as np
from support.tiny_models import SENTENCES, load, write_json


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


def test_the_weights_are_held_in_memory(directory: Path) -> None:
    model = load(directory)
    expected = model.encode(SENTENCES)
    for path in directory.rglob("*.*"):
        path.write_bytes(b"")
    np.testing.assert_array_equal(model.encode(SENTENCES), expected)
