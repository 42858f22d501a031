# SPDX-License-Identifier: Apache-2.0
"""The terminal's picture: numbers that are right, and colours only where they are wanted."""

import sys

import numpy as np
import pytest

from selfattn.view import AttentionMap

WEIGHTS = np.array([[0.7, 0.3, 0.0], [0.104, 0.096, 0.8], [0.0, 0.0, 1.0]], np.float32)[None, None]


@pytest.fixture
def attention():
    return AttentionMap(["it", "tasted", "good"], WEIGHTS, title="a model")


def test_matrix_in_percent(attention):
    lines = attention.text(0, 0, color=False, width=80).splitlines()
    assert lines[0] == "a model, layer 0, head 0"
    assert lines[-3:] == ["    it  70 30  0", "tasted  10 10 80", "  good   0  0100"]
    heading = lines[1:-3]
    columns = ["".join(line.ljust(80)[at] for line in heading).strip() for at in (8, 11, 14)]
    assert columns == ["it", "tasted", "good"]


def test_plain_text_is_plain(attention):
    assert "\x1b" not in attention.text(color=False)
    assert "\x1b" not in attention.text(word="it", color=False)


def test_shades_follow_the_weights(attention):
    rows = attention.text(0, 0, color=True, width=80).splitlines()[-3:]
    assert all(row.count("\x1b[48;5;") == 3 and row.endswith("\x1b[0m") for row in rows)
    zero, largest = (rows[2].split("\x1b[48;5;")[n].split(";")[0] for n in (1, 3))
    assert zero != largest


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_only_on_a_terminal_that_wants_them(attention, monkeypatch, terminal, environment, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b" in attention.text()) is expected
    assert "\x1b" in attention.text(color=True)


def test_a_word_as_bars(attention):
    lines = attention.text(word="tasted", color=False).splitlines()
    assert lines[0] == "tasted  (a model, layer 0, head 0)"
    assert lines[1] == "      it  10.4 % #####"
    assert lines[3] == "    good  80.0 % " + 40 * "#"


def test_a_list_where_the_matrix_is_too_wide(attention):
    lines = attention.text(color=False, width=15).splitlines()
    assert lines[1:] == ["    it ->      it  70", "tasted ->    good  80", "  good ->    good 100"]


def test_a_list_as_wide_as_it_may_be(attention):
    many = AttentionMap([f"w{i}" for i in range(60)], np.full((1, 1, 60, 60), 1 / 60))
    lines = many.text(color=False, width=60).splitlines()
    assert lines[1].count("   2") == 6
    assert max(map(len, lines)) <= 60


def test_captions_name_the_choice():
    attention = AttentionMap(["a"], np.ones((3, 4, 1, 1)))
    first = lambda *choice: attention.text(*choice, color=False).splitlines()[0]  # noqa: E731
    assert first() == "mean of 3 layers, mean of 4 heads"
    assert first(-1, [0, 2]) == "layer 2, mean of heads 0, 2"


def test_control_characters_do_not_reach_the_terminal():
    attention = AttentionMap(["\x1b[2J", "a\nb"], np.full((1, 1, 2, 2), 0.5), title="\x1b]0;x\x07")
    for text in (attention.text(color=False), attention.text(color=False, word=0), attention.text(width=1)):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert len(attention.text(color=False, word=0).splitlines()) == 3


def test_wide_characters_keep_the_columns_straight():
    attention = AttentionMap(["\u732b", "cat"], np.full((1, 1, 2, 2), 0.5))
    assert attention.text(color=False).splitlines()[-2:] == [" \u732b  50 50", "cat  50 50"]
