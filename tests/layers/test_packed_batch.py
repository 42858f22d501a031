# SPDX-License-Identifier: Apache-2.0
"""Batches without padding: padded, packed and alone, for a cell and for cells side by side."""

import numpy as np
import pytest
from support.layer_makers import D_MODEL, grouped, random_cell, same_bits, words


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_padded_packed_and_alone_give_the_same_bits(rng, make):
    layer, x, lengths = make(rng), words(rng, 4, 9), [9, 0, 1, 5]
    padded = layer(x, lengths=lengths)
    packed = layer(
        np.concatenate([x[b, :n] for b, n in enumerate(lengths)]), cu_seqlens=np.cumsum([0, *lengths])
    )
    same_bits(packed, np.concatenate([padded[b, :n] for b, n in enumerate(lengths)]))
    for b, n in enumerate(lengths):
        same_bits(padded[b, :n], layer(x[b, :n]))


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_nan_in_the_padding_stays_there(rng, make):
    layer, x = make(rng), words(rng, 2, 5)
    clean = layer(x, lengths=[5, 2])
    x[1, 2:] = np.nan
    same_bits(layer(x, lengths=[5, 2]), clean)


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_words_of_any_strides_give_the_same_bits(rng, make):
    layer, x = make(rng), words(rng, 6, 5)
    same_bits(layer(x[::-2]), layer(np.ascontiguousarray(x[::-2])))
    same_bits(layer(np.asfortranarray(x)), layer(x))
    misaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    same_bits(layer(misaligned), layer(x))


@pytest.mark.parametrize("make", [random_cell, grouped])
def test_no_words_give_no_values(rng, make):
    layer = make(rng)
    width = layer(words(rng, 1)).shape[-1]
    assert layer(words(rng, 0)).shape == (0, width)
    assert layer(words(rng, 0, 4)).shape == (0, 4, width)
    assert layer(words(rng, 3, 0), lengths=[0, 0, 0]).shape == (3, 0, width)
    assert layer(words(rng, 0), cu_seqlens=[0]).shape == (0, width)
    assert layer(words(rng, 0), cu_seqlens=[0, 0, 0]).shape == (0, width)


F32 = np.float32
BAD_CALLS = {
    "float64": (np.zeros((5, D_MODEL)), {}, TypeError, r"x has dtype float64.*astype"),
    "rank": (np.zeros(D_MODEL, F32), {}, ValueError, r"x has shape \(24,\); it needs"),
    "four": (np.zeros((1, 1, 1, D_MODEL), F32), {}, ValueError, r"x has shape \(1, 1, 1, 24\); it needs"),
    "width": (np.zeros((5, 23), F32), {}, ValueError, r"x has shape \(5, 23\).* d_model=24"),
    "both": (np.zeros((5, D_MODEL), F32), {"lengths": [5], "cu_seqlens": [0, 5]}, ValueError, "both given"),
    "too long": (
        np.zeros((2, 5, D_MODEL), F32),
        {"lengths": [5, 6]},
        ValueError,
        r"lengths\[1\]=6.*seq_len=5",
    ),
    "negative": (np.zeros((2, 5, D_MODEL), F32), {"lengths": [-1, 5]}, ValueError, r"lengths\[0\]=-1"),
    "batch": (
        np.zeros((2, 5, D_MODEL), F32),
        {"lengths": [5]},
        ValueError,
        r"lengths has shape \(1,\).*\(2, 5",
    ),
    "no batch": (
        np.zeros((5, D_MODEL), F32),
        {"lengths": [5]},
        ValueError,
        r"lengths has shape \(1,\).*\(5, 24",
    ),
    "fractions": (np.zeros((1, 5, D_MODEL), F32), {"lengths": [2.0]}, TypeError, "lengths has dtype float64"),
    "start": (np.zeros((5, D_MODEL), F32), {"cu_seqlens": [1, 5]}, ValueError, "begins at 1 and ends at 5"),
    "end": (np.zeros((5, D_MODEL), F32), {"cu_seqlens": [0, 4]}, ValueError, "ends at 4.*tokens, 5"),
    "back": (
        np.zeros((5, D_MODEL), F32),
        {"cu_seqlens": [0, 4, 3, 5]},
        ValueError,
        r"cu_seqlens\[2\]=3 is less than cu_seqlens\[1\]=4",
    ),
    "none": (np.zeros((0, D_MODEL), F32), {"cu_seqlens": []}, ValueError, r"cu_seqlens has shape \(0,\)"),
    "padded": (
        np.zeros((1, 5, D_MODEL), F32),
        {"cu_seqlens": [0, 5]},
        ValueError,
        r"x has shape \(1, 5, 24\)",
    ),
}


@pytest.mark.parametrize("make", [random_cell, grouped])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_words_and_lengths(rng, make, name):
    x, how, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        make(rng)(x, **how)
