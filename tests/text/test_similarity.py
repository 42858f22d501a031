# SPDX-License-Identifier: Apache-2.0
"""The four similarities, against one pair at a time in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import build, write_json

from selfattn._native import pointwise as _pointwise
from selfattn.text import TextEncoder, similarity

PAIRS = {
    "cosine": lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b)),
    "dot": lambda a, b: a @ b,
    "euclidean": lambda a, b: -np.linalg.norm(a - b),
    "manhattan": lambda a, b: -np.abs(a - b).sum(),
}


@pytest.mark.parametrize("name", PAIRS)
def test_against_one_pair_at_a_time(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "MAX_BLOCK", 100)
    a, b = rng.standard_normal((7, 9)).astype(np.float32), rng.standard_normal((5, 9)).astype(np.float32)
    expected = [[PAIRS[name](x, y) for y in b.astype(np.float64)] for x in a.astype(np.float64)]
    table = similarity.similarity(a, b, name)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, expected, rtol=0, atol=2e-6)
    pairwise = similarity.similarity_pairwise(a[:5], b, name)
    np.testing.assert_allclose(pairwise, np.diagonal(expected), rtol=0, atol=2e-6)


def test_a_vector_counts_as_one_row(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal(9), rng.standard_normal((5, 9))
    assert similarity.similarity(a, b, "cosine").shape == (1, 5)
    assert similarity.similarity_pairwise(a, a, "cosine") == pytest.approx(1)


def test_a_zero_vector_is_like_nothing() -> None:
    assert similarity.similarity(np.zeros((1, 3)), np.ones((1, 3)), "cosine") == 0


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a has dimension 3, b has 4"):
        similarity.similarity(np.ones((2, 3)), np.ones((2, 4)), "dot")
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\), b has \(1, 3\)"):
        similarity.similarity_pairwise(np.ones((2, 3)), np.ones((1, 3)), "dot")
    with pytest.raises(ValueError, match="b has 3 dimensions"):
        similarity.similarity(np.ones((2, 3)), np.ones((2, 3, 1)), "dot")


def test_the_model_names_its_function(tmp_path: Path) -> None:
    write_json(build(tmp_path) / "config_sentence_transformers.json", {"similarity_fn_name": "manhattan"})
    model = TextEncoder.from_pretrained(tmp_path)
    assert model.similarity_fn_name == "manhattan"
    embeddings = model.encode(["cat", "dog"])
    assert model.similarity(embeddings, embeddings)[0, 1] == pytest.approx(
        -np.abs(embeddings[0] - embeddings[1]).sum()
    )
    assert model.similarity_pairwise(embeddings, embeddings).shape == (2,)
    write_json(tmp_path / "config_sentence_transformers.json", {"similarity_fn_name": "hamming"})
    with pytest.raises(ValueError, match="similarity_fn_name='hamming' is not one of cosine, dot, euclidean"):
        TextEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_columns_at_a_time_change_no_bit(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = rng.standard_normal((7, 9)).astype(np.float32), rng.standard_normal((50, 9)).astype(np.float32)
    expected = similarity.similarity(a, b, name)
    widths, linear = [], _pointwise.linear

    def spy(x: Any, weight: Any, *rest: Any) -> Any:
        widths.append(weight.shape[1])
        return linear(x, weight, *rest)

    monkeypatch.setattr(_pointwise, "linear", spy)
    monkeypatch.setattr(similarity, "COLUMNS", 12)
    np.testing.assert_array_equal(similarity.similarity(a, b, name), expected)
    assert widths == [12, 12, 12, 12, 2]
    assert similarity.similarity(a, b[:0], name).shape == (7, 0)
