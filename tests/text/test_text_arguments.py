# SPDX-License-Identifier: Apache-2.0
"""What callers of sentence-transformers pass, and what nobody should: each is taken or named."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import SENTENCES, build

from selfattn.text import TextEncoder, similarity


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.from_pretrained(build(tmp_path_factory.mktemp("model")))


def test_sentences_is_another_name_of_inputs(model: TextEncoder) -> None:
    np.testing.assert_array_equal(model.encode(sentences=SENTENCES), model.encode(SENTENCES))
    assert model.encode(sentences="cat").shape == (16,)
    with pytest.raises(TypeError, match="inputs and sentences are two names of one argument"):
        model.encode("cat", sentences="cat")
    with pytest.raises(TypeError, match="inputs is a NoneType, expected a str"):
        model.encode()


@pytest.mark.parametrize("name", ["convert_to_tensor", "device"])
def test_what_only_pytorch_can_do_is_to_be_dropped(model: TextEncoder, name: str) -> None:
    with pytest.raises(TypeError, match=f"no argument {name}; drop it: NumPy arrays .* on the CPU"):
        model.encode("cat", **{name: None})


def test_similarity_of_texts_is_refused(model: TextEncoder) -> None:
    for function in (model.similarity, model.similarity_pairwise):
        with pytest.raises(TypeError, match="a holds <U3, expected embeddings"):
            function("cat", "dog")
        with pytest.raises(TypeError, match="b holds <U3, expected embeddings"):
            function(model.encode(["cat"]), ["dog"])
    with pytest.raises(TypeError, match="a holds object"):
        similarity.similarity([None], [1.0], "dot")


def test_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(build(tmp_path))
    with pytest.raises(ValueError, match="name_or_directory is empty"):
        TextEncoder.from_pretrained("")


def test_a_revision_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "carries_one_revision"
    build(package / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in (package / "model", "carries_one_revision"):
        with pytest.raises(ValueError, match="revision='v2' would be ignored"):
            TextEncoder.from_pretrained(name, revision="v2")
