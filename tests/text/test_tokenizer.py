# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: truncation, padding, lower case."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import (
    build,
    load,
    write_json,
)

from selfattn.text import TextEncoder


@pytest.mark.parametrize("length", [0, -3, "long", True, 2.5])
def test_a_max_seq_length_that_makes_no_sense(directory: Path, length: Any) -> None:
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": length})
    with pytest.raises(
        ValueError, match=r"sentence_bert_config\.json: the maximum sequence length .* not a positive"
    ):
        load(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.from_pretrained(build(tmp_path_factory.mktemp("model")))


def test_a_long_text_is_cut_off_and_counted(model: TextEncoder) -> None:
    before = model.truncated
    tokens = model.encode(["cat " * 500, "cat " * 30, "cat " * 31], output_value="token_embeddings")
    assert [len(rows) for rows in tokens] == [32, 32, 32]
    assert model.truncated == before + 2


def test_truncation_baked_into_the_tokenizer_is_ignored(model: TextEncoder) -> None:
    assert model.encode("cat " * 20, output_value="token_embeddings").shape == (22, 16)


def test_max_seq_length_can_be_set_within_the_model(tmp_path: Path) -> None:
    model = TextEncoder.from_pretrained(build(tmp_path))
    assert model.max_seq_length == 32
    for length in (3, 40):
        model.max_seq_length = length
        assert len(model.encode("cat " * 99, output_value="token_embeddings")) == length
    for length in (2, 41):
        with pytest.raises(
            ValueError, match=f"max_seq_length={length} is not between 3 and the 40 positions"
        ):
            model.max_seq_length = length
    with pytest.raises(TypeError, match="max_seq_length is a float"):
        model.max_seq_length = 8.0
    assert model.max_seq_length == 40


@pytest.mark.parametrize(
    ("sentence_bert", "tokenizer", "expected"),
    [(10, 20, 10), (None, 20, 20), (None, 10**30, 40), (None, None, 40), (512, None, 40)],
)
def test_where_max_seq_length_comes_from(
    tmp_path: Path, sentence_bert: int | None, tokenizer: int | None, expected: int
) -> None:
    write_json(build(tmp_path) / "sentence_bert_config.json", {"max_seq_length": sentence_bert})
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": tokenizer})
    assert TextEncoder.from_pretrained(tmp_path).max_seq_length == expected


def test_roberta_has_no_room_before_its_padding(tmp_path: Path) -> None:
    model = TextEncoder.from_pretrained(build(tmp_path, "roberta"))
    model.max_seq_length = 40  # 42 rows, of which the first two are never used
    with pytest.raises(ValueError, match="max_seq_length=41 is not between 3 and the 40"):
        model.max_seq_length = 41


def test_lower_casing_of_the_configuration(tmp_path: Path) -> None:
    build(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace('"lowercase":true', '"lowercase":false')
    (tmp_path / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    write_json(tmp_path / "sentence_bert_config.json", {"do_lower_case": False})
    cased = TextEncoder.from_pretrained(tmp_path)
    assert not np.array_equal(cased.encode("CAT"), cased.encode("cat"))
    write_json(tmp_path / "sentence_bert_config.json", {"do_lower_case": True})
    lower = TextEncoder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(lower.encode("CAT"), cased.encode("cat"))


def test_a_tokenizer_that_contradicts_itself(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"]["special_tokens"]["[OTHER]"] = tokenizer["post_processor"][
        "special_tokens"
    ].pop("[SEP]")
    write_json(path, tokenizer)
    with pytest.raises(
        ValueError, match=r"tokenizer\.json .* is not a tokenizer: .*: copy or download the model"
    ):
        load(directory)
