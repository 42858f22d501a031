# SPDX-License-Identifier: Apache-2.0
"""Positional encodings: their formulas at known points, their laws, and refused input."""

import math

import numpy as np
import pytest

from selfattn.layers.positions import alibi_slopes, rotary_embedding, sinusoidal_positions


def test_sinusoidal_positions_are_the_formula_of_the_paper():
    table = sinusoidal_positions(7, 6, dtype=np.float64)
    for position in range(7):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-15)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-15)


def test_sinusoidal_positions_are_rounded_once():
    wide, narrow = sinusoidal_positions(3000, 8, dtype=np.float64), sinusoidal_positions(3000, 8)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, wide.astype(np.float32))


def test_sinusoidal_positions_of_odd_width_end_on_a_sine():
    table = sinusoidal_positions(4, 5, dtype=np.float64)
    np.testing.assert_allclose(table[:, 4], np.sin(np.arange(4) / 10000 ** (4 / 5)), rtol=1e-14)


def test_sinusoidal_base_and_zero_length():
    np.testing.assert_allclose(
        sinusoidal_positions(3, 4, base=4.0, dtype=np.float64)[:, 2], np.sin(np.arange(3) / 2)
    )
    assert sinusoidal_positions(0, 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, 4), "length=-1"), ((4, 0), "d_model=0")],
)
def test_sinusoidal_positions_refuse_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        sinusoidal_positions(*arguments)


@pytest.mark.parametrize("base", [0.0, -1.0, np.inf, np.nan])
def test_bases_must_be_positive_and_finite(base):
    with pytest.raises(ValueError, match="base="):
        sinusoidal_positions(3, 4, base=base)
    with pytest.raises(ValueError, match="base="):
        rotary_embedding(np.zeros((3, 4)), np.arange(3), base=base)


# ---- rotary ----


def turned(x, position, pairs, rotary_dim, base=10000.0):
    """One vector turned pair by pair, as complex numbers."""
    out = x.astype(complex).copy()
    for i, (first, second) in enumerate(pairs):
        z = complex(x[first], x[second]) * np.exp(1j * position / base ** (2 * i / rotary_dim))
        out[first], out[second] = z.real, z.imag
    return out.real


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 6, 2, 0])
def test_rotary_embedding_turns_pairs(interleaved, rotary_dim):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
    positions = np.array([[0, 1, 2, 3, 4], [9, 3, 0, 100, 7]])
    out = rotary_embedding(x, positions, rotary_dim=rotary_dim, interleaved=interleaved)
    dim = 8 if rotary_dim is None else rotary_dim
    half = range(dim // 2)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2) for i in half]
    for b, h, s in np.ndindex(2, 3, 5):
        expected = turned(x[b, h, s], positions[b, s], pairs, dim)
        np.testing.assert_allclose(out[b, h, s], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rotary_embedding_is_the_operator_of_onnx(interleaved, rotary_dim):
    operator = pytest.importorskip("onnx.reference.ops.op_rotary_embedding").rotary_embedding
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
    positions = np.array([[0, 1, 2, 3, 4], [9, 3, 0, 10, 7]])
    angles = np.arange(11)[:, None] * 10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    expected = operator(x, np.cos(angles), np.sin(angles), positions, interleaved, rotary_dim)
    out = rotary_embedding(x, positions, rotary_dim=rotary_dim, interleaved=interleaved)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)


def test_rotary_positions_of_one_item_serve_all():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32)
    out = rotary_embedding(x, np.arange(5))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, rotary_embedding(x, np.tile(np.arange(5), (2, 1))))
    np.testing.assert_array_equal(out[1, 2], rotary_embedding(x[1, 2], np.arange(5)))


def test_rotary_scores_depend_on_distance_alone():
    query, key = np.random.default_rng(1).standard_normal((2, 1, 16))
    scores = [
        float((rotary_embedding(query, [p + 5])[0] * rotary_embedding(key, [p])[0]).sum())
        for p in (0, 3, 1000)
    ]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-10)
    assert abs(scores[0] - float((query * key).sum())) > 1e-3


def test_rotary_embedding_of_float16_is_the_float32_one_rounded():
    x = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float16)
    out = rotary_embedding(x, np.arange(5))
    assert out.dtype == np.float16
    np.testing.assert_array_equal(
        out, rotary_embedding(x.astype(np.float32), np.arange(5)).astype(np.float16)
    )


def test_rotary_embedding_leaves_its_input_alone_and_takes_any_strides():
    x = np.random.default_rng(3).standard_normal((5, 4, 8)).astype(np.float32)
    before = x.copy()
    swapped = rotary_embedding(x.swapaxes(0, 1), np.arange(5))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(swapped, rotary_embedding(x.swapaxes(0, 1).copy(), np.arange(5)))


def test_rotary_embedding_of_nothing():
    assert rotary_embedding(np.zeros((2, 0, 8), np.float32), np.zeros(0, int)).shape == (2, 0, 8)


@pytest.mark.parametrize(
    ("shape", "positions", "rotary_dim", "message"),
    [
        ((8,), [0], None, r"\(8,\)"),
        ((5, 8), np.arange(4), None, r"\(4,\).*\(5, 8\).*\(5,\)"),
        ((2, 5, 8), np.zeros((3, 5), int), None, r"\(3, 5\).*\(2, 5, 8\).*\(2, 5\)"),
        ((5, 8), np.zeros((1, 5), int), None, "no batch"),
        ((5, 7), np.arange(5), None, "rotary_dim=7 must be even"),
        ((5, 8), np.arange(5), 10, "rotary_dim=10.*dim=8"),
    ],
)
def test_rotary_embedding_refuses_shapes_that_do_not_fit(shape, positions, rotary_dim, message):
    with pytest.raises(ValueError, match=message):
        rotary_embedding(np.zeros(shape), positions, rotary_dim=rotary_dim)


def test_rotary_embedding_refuses_integers():
    with pytest.raises(TypeError, match="int64"):
        rotary_embedding(np.zeros((5, 8), np.int64), np.arange(5))
    with pytest.raises(TypeError, match="positions has dtype bool"):
        rotary_embedding(np.zeros((5, 8)), np.ones(5, bool))


# ---- ALiBi ----


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [0.5 * h for h in range(1, 17)]),
        (3, [4, 8, 2]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_alibi_slopes(num_heads, exponents):
    slopes = alibi_slopes(num_heads)
    assert slopes.dtype == np.float32
    np.testing.assert_allclose(slopes, 2.0 ** -np.array(exponents), rtol=1e-7)


def test_alibi_slopes_need_a_head():
    with pytest.raises(ValueError, match="num_heads=0"):
        alibi_slopes(0)


# ---- sizes that are not integers ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alibi_slopes(4.0), "num_heads=4.0 must be an integer, not a float"),
        (lambda: sinusoidal_positions(2.5, 4), "length=2.5 must be an integer"),
        (lambda: sinusoidal_positions(3, 4.5), "d_model=4.5 must be an integer"),
        (lambda: sinusoidal_positions(True, 3), "length=True must be an integer, not a bool"),
        (
            lambda: rotary_embedding(np.zeros((5, 8)), np.arange(5), rotary_dim=4.0),
            "rotary_dim=4.0 must be an integer",
        ),
    ],
)
def test_sizes_are_integers(call, message):
    with pytest.raises(TypeError, match=message):
        call()
