"""Numbers from callers: checked, and named where they are wrong."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)


def as_integer(name: str, value: Any) -> int:
    """`value` as an int; TypeError naming it for anything but an integer (4.0 and True are none)."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be an integer, not a {type(value).__name__}")
    return number


def as_number(name: str, value: Any) -> float:
    """`value` as a float that float32 can hold; TypeError or ValueError naming it for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}={value!r} must be a number, not a {type(value).__name__}")
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name}={value} must be finite in float32")
    return float(value)
