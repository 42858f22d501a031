# SPDX-License-Identifier: Apache-2.0
"""The learning rate, step by step."""

import math

import pytest

from selfattn.train import warmup_cosine


def test_up_in_a_line_and_down_in_half_a_cosine():
    rates = [warmup_cosine(step, 4, 12, peak=2.0, floor=0.5) for step in range(15)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[8] == pytest.approx(1.25)  # half way
    assert rates[6] == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)
    assert rates[5:12] == sorted(rates[5:12], reverse=True)
    assert rates[11] > 0.5
    assert rates[12:] == [0.5] * 3


def test_without_warmup_and_with_nothing_else():
    assert warmup_cosine(0, 0, 10, peak=1.0) == 1.0
    assert warmup_cosine(10, 0, 10, peak=1.0) == 0.0
    assert [warmup_cosine(step, 2, 2, peak=1.0) for step in range(3)] == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 0, 5, 1.0), ValueError, "step=-1 must not be negative"),
        ((0, 6, 5, 1.0), ValueError, "warmup=6 must be between 0 and total=5"),
        ((0, -1, 5, 1.0), ValueError, "warmup=-1"),
        ((0, 1, 5, 1.0, 2.0), ValueError, r"floor=2\.0 must be between 0 and peak=1\.0"),
        ((0.5, 1, 5, 1.0), TypeError, r"step=0\.5 must be an integer"),
        ((0, 1, 5, float("inf")), ValueError, "peak=inf must be finite"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        warmup_cosine(*arguments)
