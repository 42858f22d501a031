# SPDX-License-Identifier: Apache-2.0
"""Token and sentence embeddings against vectors that transformers made (tests/support/make_golden.py)."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import FAMILIES, SENTENCES, build

from selfattn import active_isa, available_isas
from selfattn._native import runtime as _runtime
from selfattn.text import TextEncoder

GOLDEN = Path(__file__).parents[1] / "data" / "tiny_models.npz"


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_match_transformers(family: str, tmp_path: Path) -> None:
    model = TextEncoder.from_pretrained(build(tmp_path, family))
    tokens = model.encode(SENTENCES, output_value="token_embeddings")
    with np.load(GOLDEN) as golden:
        expected = golden[family]
    assert expected.std() > 0.5
    np.testing.assert_allclose(np.concatenate(tokens), expected, rtol=0, atol=2e-5)

    ends = np.cumsum([len(each) for each in tokens])
    means = [rows.mean(axis=0, dtype=np.float64) for rows in np.split(expected, ends[:-1])]
    embeddings = model.encode(SENTENCES)
    np.testing.assert_allclose(embeddings, [mean / np.linalg.norm(mean) for mean in means], rtol=0, atol=1e-6)


def test_instruction_sets_give_the_same_bits(tmp_path: Path) -> None:
    """All but the baseline, which has no fused multiply-add."""
    build(tmp_path)
    before = active_isa()
    tables = {}
    try:
        for name in available_isas():
            _runtime.use_isa(name)
            tables[name] = TextEncoder.from_pretrained(tmp_path).encode(SENTENCES)
    finally:
        _runtime.use_isa(before)
    baseline = tables.pop("baseline")
    for table in tables.values():
        np.testing.assert_allclose(table, baseline, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(table, next(iter(tables.values())))
