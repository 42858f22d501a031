# SPDX-License-Identifier: Apache-2.0
"""The attention matrix in a terminal: shaded cells, bars, or a list where a matrix does not fit."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# From the 256-colour palette, dark to bright: (background, foreground). Every cell is painted, so that the
# same shades read well on dark and on light terminals.
SHADES = ((234, 240), (236, 250), (23, 252), (24, 255), (31, 255), (38, 16), (80, 16), (194, 16))
LABEL_WIDTH = 16


def wants_color() -> bool:
    """Whether standard output is a terminal that is not asked to stay plain (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns(width: int | None) -> int:
    return shutil.get_terminal_size((100, 24)).columns if width is None else width


def caption(
    title: str,
    layer: int | Sequence[int] | None,
    head: int | Sequence[int] | None,
    num_layers: int,
    num_heads: int,
) -> str:
    """The line above a map, for example ``layer 3, mean of 12 heads``."""
    parts = [_chosen("layer", layer, num_layers), _chosen("head", head, num_heads)]
    return ", ".join([_printable(title), *parts] if title else parts)


def _chosen(name: str, chosen: int | Sequence[int] | None, count: int) -> str:
    if chosen is None:
        return f"mean of {count} {name}s" if count > 1 else f"{name} 0"
    numbers = [chosen] if isinstance(chosen, int) else list(chosen)
    listed = ", ".join(str(number % count) for number in numbers)
    return f"{name} {listed}" if len(numbers) == 1 else f"mean of {name}s {listed}"


def matrix(labels: list[str], weights: NDArray[np.float32], caption: str, *, color: bool, width: int) -> str:
    """(L, L) weights in percent, each column headed by its word; a list when wider than ``width``."""
    names = [_shorten(label) for label in labels]
    margin = max(map(_cells, names))
    if margin + 1 + 3 * len(names) > width:
        return strongest(labels, weights, caption, width=width)
    lines = [caption, *_heading(names, margin)]
    for name, row in zip(names, weights, strict=True):
        lines.append(_pad(name, margin) + " " + "".join(_cell(value, weights.max(), color) for value in row))
    return "\n".join(lines)


def _heading(names: list[str], margin: int) -> list[str]:
    height = max(map(len, names))
    upright = [name.rjust(height) for name in names]
    rows = ["".join(f" {letter} " for letter in letters) for letters in zip(*upright, strict=True)]
    return [" " * (margin + 1) + row.rstrip() for row in rows]


def bars(labels: list[str], weights: NDArray[np.float32], token: int, caption: str, *, color: bool) -> str:
    """What one token attends to, in the order of the sentence."""
    names = [_shorten(label) for label in labels]
    margin = max(map(_cells, names))
    row = weights[token]
    lines = [f"{names[token]}  ({caption})"]
    for name, value in zip(names, row, strict=True):
        size = round(40 * float(value) / max(float(row.max()), 1e-9))
        bar = f"\x1b[48;5;38m{' ' * size}\x1b[0m" if color and size else "#" * size
        lines.append(f"  {_pad(name, margin)} {100 * value:5.1f} % {bar}".rstrip())
    return "\n".join(lines)


def strongest(labels: list[str], weights: NDArray[np.float32], caption: str, *, width: int) -> str:
    """For each token the ones it attends to most, as many as fit."""
    names = [_shorten(label) for label in labels]
    margin = max(map(_cells, names))
    count = min(max(1, (width - margin - 3) // (margin + 6)), 6)
    lines = [caption]
    for name, row in zip(names, weights, strict=True):
        best = np.argsort(-row, kind="stable")[:count]
        found = "".join(f"  {_pad(names[j], margin)} {_cell(row[j], 1, False)}" for j in best)
        lines.append(f"{_pad(name, margin)} ->{found}")
    return "\n".join(lines)


def _cell(value: float, largest: float, color: bool) -> str:
    """Three columns: the percentage on its shade, or alone where colours are not wanted."""
    percent = f"{round(100 * float(value)):3d}"
    if not color:
        return percent
    # The square root lets small weights show.
    level = round((len(SHADES) - 1) * (float(value) / max(float(largest), 1e-9)) ** 0.5)
    background, foreground = SHADES[level]
    return f"\x1b[48;5;{background};38;5;{foreground}m{percent}\x1b[0m"


def _printable(text: str) -> str:
    """Control characters would be obeyed by the terminal instead of shown."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _shorten(label: str) -> str:
    label = _printable(label)
    return label if len(label) <= LABEL_WIDTH else label[: LABEL_WIDTH - 2] + ".."


def _cells(text: str) -> int:
    """How many columns a text takes: East Asian characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _pad(text: str, width: int) -> str:
    return " " * (width - _cells(text)) + text
