# SPDX-License-Identifier: Apache-2.0
"""config_sentence_transformers.json: the prompts of a model."""

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


def with_prompts(directory: Path, **changes: object) -> TextEncoder:
    prompts = {"query": "she said that ", "none": ""}
    write_json(build(directory) / "config_sentence_transformers.json", {"prompts": prompts} | changes)
    return TextEncoder.from_pretrained(directory)


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


def test_prompts(tmp_path: Path) -> None:
    model = with_prompts(tmp_path)
    expected = model.encode("she said that cat")
    np.testing.assert_array_equal(model.encode("cat", prompt="she said that "), expected)
    np.testing.assert_array_equal(model.encode("cat", prompt_name="query"), expected)
    np.testing.assert_array_equal(model.encode("cat", prompt="", prompt_name="query"), model.encode("cat"))
    assert model.prompts["query"] == "she said that "
    with pytest.raises(
        ValueError, match=r"prompt_name='document' is not one of this model's \['none', 'query'\]"
    ):
        model.encode("cat", prompt_name="document")
    with pytest.raises(TypeError, match="prompt is a int"):
        model.encode("cat", prompt=3)


def test_the_default_prompt(tmp_path: Path) -> None:
    model = with_prompts(tmp_path, default_prompt_name="query")
    np.testing.assert_array_equal(model.encode("cat"), model.encode("she said that cat", prompt=""))


def test_a_prompt_left_out_of_pooling(tmp_path: Path) -> None:
    build(tmp_path)
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    write_json(
        tmp_path / "modules.json",
        [{"type": "a.Transformer", "path": ""}, {"type": "b.Pooling", "path": "1_Pooling"}],
    )
    model = TextEncoder.from_pretrained(tmp_path)
    rows = model.encode("she said that cat sat", output_value="token_embeddings")
    expected = rows[4:].mean(axis=0, dtype=np.float64)  # without [CLS] she said that
    np.testing.assert_allclose(model.encode("cat sat", prompt="she said that "), expected, rtol=0, atol=1e-7)
