# SPDX-License-Identifier: Apache-2.0
"""Pooling and normalizing against plain loops in float64, and independence from neighbours."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import build, write_json

from selfattn.text import TextEncoder
from selfattn.text.pooling import MODES, normalize, pool, read_pooling

LENGTHS = (1, 5, 0, 2, 31)
LOOPS = {
    "cls": lambda rows, skip: rows[skip],
    "max": lambda rows, skip: [max(column) for column in rows[skip:].T],
    "mean": lambda rows, skip: sum(rows[skip:]) / len(rows[skip:]),
    "mean_sqrt_len_tokens": lambda rows, skip: sum(rows[skip:]) / len(rows[skip:]) ** 0.5,
    "weightedmean": lambda rows, skip: (
        sum((i + 1) * rows[i] for i in range(skip, len(rows))) / sum(i + 1 for i in range(skip, len(rows)))
    ),
    "lasttoken": lambda rows, skip: rows[-1],
}


@pytest.fixture
def sentences(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((length, 6)).astype(np.float32) for length in LENGTHS]


def offsets(sentences: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *(len(rows) for rows in sentences)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("skip", [0, 3])
def test_modes_against_a_loop(mode: str, skip: int, sentences: list[np.ndarray]) -> None:
    result = pool(np.concatenate(sentences), offsets(sentences), (mode,), skip=skip)
    assert (result.shape, result.dtype) == ((len(LENGTHS), 6), np.float32)
    for rows, row in zip(sentences, result, strict=True):
        if len(rows):
            expected = LOOPS[mode](rows.astype(np.float64), min(skip, len(rows) - 1))
            np.testing.assert_array_equal(row, np.asarray(expected, dtype=np.float32))
        else:
            np.testing.assert_array_equal(row, 0)


def test_several_modes_stand_side_by_side(sentences: list[np.ndarray]) -> None:
    tokens, cu_seqlens = np.concatenate(sentences), offsets(sentences)
    parts = [pool(tokens, cu_seqlens, (mode,)) for mode in MODES]
    np.testing.assert_array_equal(pool(tokens, cu_seqlens, tuple(MODES)), np.concatenate(parts, axis=1))


@pytest.mark.parametrize("mode", MODES)
def test_neighbours_do_not_matter(mode: str, sentences: list[np.ndarray]) -> None:
    together = pool(np.concatenate(sentences), offsets(sentences), (mode,))
    for rows, row in zip(sentences, together, strict=True):
        np.testing.assert_array_equal(pool(rows, np.array([0, len(rows)]), (mode,))[0], row)


def test_normalize(rng: np.random.Generator) -> None:
    x = rng.standard_normal((9, 33)).astype(np.float32)
    exact = x.astype(np.float64)
    result = normalize(x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, exact / np.linalg.norm(exact, axis=1, keepdims=True), rtol=1e-7)
    for i in range(len(x)):
        np.testing.assert_array_equal(normalize(x[i : i + 1])[0], result[i])
    np.testing.assert_array_equal(normalize(np.zeros((1, 4), np.float32)), 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["lasttoken", "cls"]}, ("lasttoken", "cls")),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}, ("cls", "lasttoken")),
        (dict.fromkeys(MODES.values(), True), tuple(MODES)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"embedding_dimension": 16}, ("mean",)),
    ],
)
def test_both_spellings_of_the_configuration(tmp_path: Path, config: dict, expected: tuple[str, ...]) -> None:
    write_json(tmp_path / "config.json", config)
    assert read_pooling(tmp_path / "config.json", 16) == (expected, True)


def test_a_model_with_two_modes(tmp_path: Path) -> None:
    write_json(build(tmp_path) / "1_Pooling" / "config.json", {"pooling_mode": ["max", "mean"]})
    model = TextEncoder.from_pretrained(tmp_path)
    assert model.embedding_dim == 32
    assert repr(model).endswith("max+mean -> normalize)")
    rows = model.encode("the cat sat", output_value="token_embeddings").astype(np.float64)
    expected = np.concatenate([rows.max(axis=0), rows.mean(axis=0)])
    np.testing.assert_allclose(
        model.encode("the cat sat"), expected / np.linalg.norm(expected), rtol=0, atol=1e-7
    )
