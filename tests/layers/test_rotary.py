# SPDX-License-Identifier: Apache-2.0
"""RotaryPositions: the angles, the tables that grow, the turn and its way back."""

import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.layer_makers import same_bits

from selfattn import reference
from selfattn.layers import RotaryPositions
from selfattn.layers.positions import rotary_embedding

KINDS = {
    "all channels": RotaryPositions(),
    "neighbours": RotaryPositions(interleaved=True),
    "some channels": RotaryPositions(500.0, rotary_dim=6),
    "some neighbours": RotaryPositions(500.0, rotary_dim=2, interleaved=True),
    "scaled": RotaryPositions(frequencies=(1.0, 0.5, 0.25, 1e-3, 0.0), factor=1.2079),
}
HEAD_DIM = 10
POSITIONS = np.array([0, 1, 2, 3, 0, 1, 77])


def heads(rng, heads=3):
    return rng.standard_normal((len(POSITIONS), heads, HEAD_DIM)).astype(np.float32)


# ---- angles ----


@pytest.mark.parametrize("base", [10000.0, 1e6, 160000.0, 2.5])
def test_frequencies_are_powers_of_the_base_rounded_once(base):
    """Within one unit of the last place of what libm gives."""
    found = RotaryPositions(base).radians(128)
    np.testing.assert_allclose(found, base ** (-np.arange(0, 128, 2) / 128), rtol=3e-16 * 4)
    assert found.dtype == np.float64
    assert found[0] == 1.0


def test_frequencies_have_known_digits():
    """10000^(-1/3), 10000^(-2/3) and 500000^(-1/32), to 20 digits, computed by other means."""
    found = RotaryPositions(10000.0).radians(6)
    assert found.tolist() == [1.0, float("0.046415888336127788924"), float("0.0021544346900318837217")]
    assert RotaryPositions(10000.0, rotary_dim=4).radians(64).tolist() == [1.0, 0.01]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_rounded_once(kind):
    rotary, length = KINDS[kind], 100_001
    cosines, sines = rotary.tables(HEAD_DIM, length)
    angles = np.arange(len(cosines))[:, None] * rotary.radians(HEAD_DIM)
    assert len(cosines) >= length
    for found, function in ((cosines, np.cos), (sines, np.sin)):
        wide = function(angles) * rotary.factor
        assert found.dtype == np.float32
        assert (np.abs(found - wide) <= np.spacing(np.abs(wide).astype(np.float32)) * 0.5000001).all()
        assert (found != wide.astype(np.float32)).mean() < 1e-5  # where a last bit of libm decides


def test_tables_grow_and_keep_what_they_had():
    rotary = RotaryPositions()
    short = rotary.tables(8, 3)
    assert rotary.tables(8, len(short[0]))[0] is short[0]
    long = rotary.tables(8, len(short[0]) + 1)
    assert len(long[0]) == 2 * len(short[0])
    for before, after in zip(short, long, strict=True):
        same_bits(after[: len(before)], before)
        assert not after.flags.writeable
    assert rotary.tables(8, 1)[0] is long[0]
    assert rotary.tables(4, 1)[0].shape[1] == 2
    assert rotary.tables(8, 0)[0] is long[0]


def test_threads_may_ask_for_the_same_tables():
    rotary, barrier, found = RotaryPositions(), threading.Barrier(4), []

    def ask(length):
        barrier.wait()
        found.append(rotary.tables(16, length))

    threads = [threading.Thread(target=ask, args=(length,)) for length in (50, 500, 5000, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(cosines) for cosines, _ in found)[-2:] == [8192, 8192]
    longest = max(found, key=lambda tables: len(tables[0]))
    for cosines, sines in found:
        same_bits(cosines, longest[0][: len(cosines)])
        same_bits(sines, longest[1][: len(sines)])


# ---- the turn ----


@pytest.mark.parametrize("kind", KINDS)
def test_turn_is_the_specification(rng, kind):
    rotary, x = KINDS[kind], rng.standard_normal((40, 3, HEAD_DIM)).astype(np.float32)
    expected = reference.rotary(x.astype(np.float64).swapaxes(0, 1), rotary).swapaxes(0, 1)
    np.testing.assert_allclose(rotary.turn(x, np.arange(40)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turn_agrees_with_the_function(rng, interleaved):
    """Both round the angles once: only the last bit of a frequency may differ."""
    x, positions = rng.standard_normal((50, 2, 8)).astype(np.float32), np.arange(50)
    turned = RotaryPositions(1000.0, rotary_dim=6, interleaved=interleaved).turn(x, positions)
    how = {"base": 1000.0, "rotary_dim": 6, "interleaved": interleaved}
    expected = rotary_embedding(x.swapaxes(0, 1), positions, **how).swapaxes(0, 1)
    np.testing.assert_allclose(turned, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_turning_back_is_the_transposed_turn(rng, kind):
    """The gradient of x in sum(grad * turn(x)) is turn_back(grad): a dot product says it for every x."""
    rotary, x, grad = KINDS[kind], heads(rng), heads(rng)
    before = grad.copy()
    forth = (rotary.turn(x, POSITIONS).astype(np.float64) * grad).sum()
    back = (rotary.turn_back(grad, POSITIONS).astype(np.float64) * x).sum()
    assert forth == pytest.approx(back, rel=1e-5)
    same_bits(grad, before)
    if rotary.factor == 1.0:
        np.testing.assert_allclose(rotary.turn_back(rotary.turn(x, POSITIONS), POSITIONS), x, atol=1e-5)


def test_channels_beyond_rotary_dim_pass(rng):
    x = heads(rng)
    same_bits(KINDS["some channels"].turn(x, POSITIONS)[..., 6:].copy(), x[..., 6:].copy())
    same_bits(KINDS["all channels"].turn(x, POSITIONS)[0], x[0])  # at position 0 nothing turns


def test_infinities_and_nan_stay_in_their_pair(rng):
    x = heads(rng)
    x[2, 1, 0], x[3, 0, 4] = np.inf, np.nan
    turned = KINDS["all channels"].turn(x, POSITIONS)
    assert np.argwhere(~np.isfinite(turned)).tolist() == [[2, 1, 0], [2, 1, 5], [3, 0, 4], [3, 0, 9]]


def test_no_words():
    assert RotaryPositions().turn(np.zeros((0, 2, 4), np.float32), []).shape == (0, 2, 4)


# ---- a value like another ----


def test_equal_arguments_make_equal_positions():
    one, other = (
        RotaryPositions(500, rotary_dim=4),
        RotaryPositions(np.float32(500.0), rotary_dim=np.int64(4)),
    )
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, RotaryPositions(500.0)}) == 2
    assert RotaryPositions(frequencies=[1, 0.5]) == RotaryPositions(frequencies=(1.0, 0.5))
    assert "frequencies=(1.0, 0.5)" in repr(RotaryPositions(frequencies=np.array([1, 0.5])))


def test_pickling_leaves_the_tables_behind():
    rotary = RotaryPositions(rotary_dim=6)
    before = len(pickle.dumps(rotary))
    rotary.tables(64, 5000)
    assert len(pickle.dumps(rotary)) == before
    assert pickle.loads(pickle.dumps(rotary)) == rotary


def test_who_has_no_rotary_positions_imports_no_decimal():
    code = (
        "import sys, numpy; before = set(sys.modules); import selfattn.layers; "
        "print('decimal' in set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


BAD = {
    "base 0": ({"base": 0}, ValueError, "base=0 must be positive and finite"),
    "base inf": ({"base": np.inf}, ValueError, "base=inf must be finite"),
    "base word": ({"base": "1e4"}, TypeError, "base='1e4' must be a number"),
    "factor": ({"factor": -1.0}, ValueError, r"factor=-1\.0 must be positive"),
    "odd": ({"rotary_dim": 5}, ValueError, "rotary_dim=5 must be even and at least 2"),
    "none": ({"rotary_dim": 0}, ValueError, "rotary_dim=0 must be even and at least 2"),
    "float": ({"rotary_dim": 4.0}, TypeError, "rotary_dim"),
    "interleaved": ({"interleaved": 1}, TypeError, "interleaved=1 must be True or False"),
    "nan": ({"frequencies": (1.0, np.nan)}, ValueError, "frequencies=nan must be finite"),
    "one": ({"frequencies": 1.0}, TypeError, "frequencies is a float; it must be a tuple of numbers"),
    "word": ({"frequencies": "12"}, TypeError, "frequencies is a str"),
    "count": (
        {"frequencies": (1.0,), "rotary_dim": 4},
        ValueError,
        "frequencies has 1 numbers; rotary_dim=4 has 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_are_refused(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        RotaryPositions(**arguments)


def test_heads_and_positions_that_do_not_fit():
    with pytest.raises(ValueError, match="rotary_dim=8 must be at most head_dim=6"):
        RotaryPositions(rotary_dim=8).pairs(6)
    with pytest.raises(ValueError, match="head_dim=5 is odd: pass an even rotary_dim"):
        RotaryPositions().pairs(5)
    with pytest.raises(ValueError, match="frequencies has 2 numbers; rotary_dim=6 has 3 pairs"):
        RotaryPositions(frequencies=(1.0, 0.5)).tables(6, 1)
    x = np.zeros((3, 2, 4), np.float32)
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\)"):
        RotaryPositions().turn(x[:, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="dtype float64"):
        RotaryPositions().turn(x.astype(np.float64), [0, 1, 2])
    with pytest.raises(ValueError, match=r"positions has shape \(2,\); one for each of the tokens is \(3,\)"):
        RotaryPositions().turn(x, [0, 1])
    with pytest.raises(ValueError, match="positions holds -1; positions count from 0"):
        RotaryPositions().turn(x, [0, -1, 2])
    with pytest.raises(TypeError, match="positions has dtype float64"):
        RotaryPositions().turn(x, [0.5, 1, 2])
