# SPDX-License-Identifier: Apache-2.0
"""The self-attention cell against its specification."""

import numpy as np
import pytest
from support.layer_makers import random_cell, same_bits, words

from selfattn import reference


def in_float64(array):
    return array.astype(np.float64)


# ---- against the specification ----


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", [{}, {"causal": True}, {"scale": 0.1}])
def test_a_cell_is_its_specification(rng, bias, how):
    cell, x = random_cell(rng, bias), words(rng, 3, 9)
    expected = reference.self_attention_cell(in_float64(x), cell, **how)
    np.testing.assert_allclose(cell(x, **how), expected, rtol=1e-4, atol=1e-5)


def test_a_cell_with_lengths_is_its_specification(rng):
    cell, x = random_cell(rng), words(rng, 3, 9)
    expected = reference.self_attention_cell(in_float64(x), cell, lengths=np.array([9, 1, 4]))
    out = cell(x, lengths=[9, 1, 4])
    for b, length in enumerate([9, 1, 4]):
        np.testing.assert_allclose(out[b, :length], expected[b, :length], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(out[b, length:], 0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_weights_of_a_cell(rng, causal):
    cell, x = random_cell(rng), words(rng, 2, 6)
    query, key = (
        reference.linear(in_float64(x), getattr(cell, f"{role}_weight"), getattr(cell, f"{role}_bias"))
        for role in ("query", "key")
    )
    expected = reference.attention_weights(query[:, None], key[:, None], causal=causal)[:, 0]
    np.testing.assert_allclose(cell.attention_weights(x, causal=causal), expected, rtol=1e-4, atol=1e-6)
    same_bits(cell.attention_weights(x[0], causal=causal), cell.attention_weights(x, causal=causal)[0])


def test_attention_weights_are_zero_in_the_padding(rng):
    weights = random_cell(rng).attention_weights(words(rng, 2, 6), lengths=[4, 0])
    assert weights.shape == (2, 6, 6)
    np.testing.assert_allclose(weights[0, :4, :4].sum(axis=-1), 1, rtol=1e-6)
    assert weights[0, 4:].sum() == weights[0, :, 4:].sum() == weights[1].sum() == 0


def test_attention_weights_of_packed_words(rng):
    cell, x = random_cell(rng), words(rng, 7)
    weights = cell.attention_weights(x, cu_seqlens=[0, 3, 7])
    assert weights.shape == (2, 4, 4)
    same_bits(weights[0, :3, :3], cell.attention_weights(x[:3]))
    same_bits(weights[1], cell.attention_weights(x[3:]))


def eye(rows, columns):
    return np.eye(rows, columns, dtype=np.float32)
