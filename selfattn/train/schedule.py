# SPDX-License-Identifier: Apache-2.0
"""The learning rate over the course of a training run."""

from __future__ import annotations

import math

from selfattn._checks import as_integer, as_number


def warmup_cosine(step: int, warmup: int, total: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of step 0 ... total - 1: up to `peak` in a line, down to `floor` in half a cosine.

    peak (step + 1) / warmup                                                        while step < warmup
    floor + (peak - floor) (1 + cos(π (step - warmup) / (total - warmup))) / 2      from there on
    floor                                                                           from step = total on

    Warm-up: "Accurate, Large Minibatch SGD" (Goyal et al. 2017); cosine: "SGDR" (Loshchilov and Hutter 2017).
    No step is lost at a rate of 0. Raises ValueError unless 0 <= warmup <= total and 0 <= floor <= peak.
    """
    step, warmup, total = as_integer("step", step), as_integer("warmup", warmup), as_integer("total", total)
    peak, floor = as_number("peak", peak), as_number("floor", floor)
    if step < 0:
        raise ValueError(f"step={step} must not be negative; the first step is 0")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup={warmup} must be between 0 and total={total}")
    if not 0 <= floor <= peak:
        raise ValueError(f"floor={floor} must be between 0 and peak={peak}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total:
        return floor
    return floor + (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
