# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of docs/masks.md from the code on that page: `python docs/draw_masks.py`.

The page's Python runs as one program; masks/NAME.svg shows what it leaves in the variable NAME. Shades are
rounded to 20 steps and coordinates to half a pixel, so that the last bits of a result do not show.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).resolve().parent / "masks.md"
PICTURES = PAGE.parent / "masks"

CELL, STEP = 13, 14  # a cell, and the distance to the next
LEFT, TOP, EDGE = 30, 43, 10  # room for the names of rows and columns, and around
BETWEEN, GAP = 24, 5  # between two panels, and between two groups of columns
SHADES = 20

STYLE = (
    "text{font:9px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#6a7280;text-anchor:middle}"
    ".title{font-size:11px;font-weight:600;fill:#1b1f26}.number{font-size:8px}.right{text-anchor:end}"
    ".paper{fill:#fff;stroke:#dfe3e8}.off{fill:#e9eef4}.on{fill:#17569b}.sink{fill:#c8500a}"
    ".axis{stroke:#c3cad3;fill:none}.plain{stroke:#9aa4b2;stroke-dasharray:2 3;fill:none}"
    ".curve{stroke:#17569b;stroke-width:2;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#949dab}.title{fill:#e6e9ee}"
    ".paper{fill:#14171c;stroke:#2d333d}.off{fill:#262d38}.on{fill:#69b3e3}.sink{fill:#ff9a4d}"
    ".axis{stroke:#444c58}.plain{stroke:#6a7280}.curve{stroke:#69b3e3}}"
)


# ---- the pictures ----


@dataclass(frozen=True)
class Grid:
    """An array (..., rows, columns): a panel for each of its matrices, side by side."""

    title: str
    rows: str = "queries"
    columns: str = "keys"
    panels: Sequence[str] = ("",)
    row_names: Sequence[object] = ()
    column_names: Sequence[object] = ()
    groups: Sequence[tuple[int, str]] = ()  # of columns: where each begins, and its name
    sink: bool = False  # column 0 is the sink, and shades compare all rows
    width: int = 0  # at least

    def draw(self, array: Any) -> str:
        matrices = array.reshape(-1, *array.shape[-2:])
        _, height, columns = matrices.shape
        starts = [STEP * j + GAP * sum(0 < begin <= j for begin, _ in self.groups) for j in range(columns)]
        span, top = starts[-1] + CELL, TOP + (12 if self.panels[0] else 0)
        used = LEFT + len(matrices) * (span + BETWEEN) - BETWEEN + EDGE
        indent = max(self.width - used, 0) // 2
        body = [text(indent + EDGE + 3, top + STEP * height / 2, self.rows, turned=True)]
        for number, (matrix, caption) in enumerate(zip(matrices, self.panels, strict=True)):
            left = indent + LEFT + number * (span + BETWEEN)
            body += [text(left + span / 2, top - 26, caption)] if caption else []
            ends = [*(begin for begin, _ in self.groups[1:]), columns]
            for (begin, name), end in zip(self.groups or [(0, self.columns)], ends, strict=True):
                body += [text(left + (starts[begin] + starts[end - 1] + CELL) / 2, top - 13, name)]
            across = zip(starts, self.column_names or range(columns), strict=True)
            down = enumerate(self.row_names or range(height))
            body += [text(left + x + CELL / 2, top - 3, name, "number") for x, name in across]
            body += [text(left - 4, top + STEP * i + 9.5, name, "number right") for i, name in down]
            body += cells(matrix, left, top, starts, sink=self.sink)
        return svg(self.title, max(used, self.width), top + STEP * height + EDGE, body)


@dataclass(frozen=True)
class Bars:
    """An array (1, columns): a bar for each number, and the number."""

    title: str
    columns: str = "keys"

    def draw(self, array: Any) -> str:
        numbers, room = array.reshape(-1), 60
        floor = TOP - 9 + room
        body = [text(LEFT + STEP * len(numbers), floor + 24, self.columns)]
        body += [f'<path class="axis" d="M{LEFT - 6} {floor}.5h{2 * STEP * len(numbers) + 8}"/>']
        for j, number in enumerate(numbers):
            x, height = LEFT + 2 * STEP * j, rounded(room * number / numbers.max())
            body += [f'<path class="on" d="M{x} {floor}v-{height}h{2 * STEP - 4}v{height}z"/>']
            body += [text(x + STEP - 2, floor - float(height) - 4, f"{number + 1e-6:.2f}", "number")]
            body += [text(x + STEP - 2, floor + 11, j, "number")]
        return svg(self.title, LEFT + 2 * STEP * len(numbers) + EDGE, floor + 34, body)


@dataclass(frozen=True)
class Curve:
    """An array (2, n): its second row over its first, beside the straight line, inside +-limit."""

    title: str
    across: str
    down: str
    limit: float

    def draw(self, array: Any) -> str:
        x, y = array
        wide, high, largest = 200, 124, x.max()  # one scale for both axes
        left, top = LEFT + 16, TOP - 10
        column = left + (x / largest + 1) * wide / 2
        row = top + (1 - y / largest * wide / high) * high / 2
        middle, reach = top + high / 2, self.limit / largest * wide / 2
        points = " ".join(f"{rounded(a)},{rounded(b)}" for a, b in zip(column, row, strict=True))
        slanted = f"M{rounded(left + (wide - high) / 2)} {top + high}l{high}-{high}"
        flat = "".join(f"M{left} {rounded(middle + sign * reach)}h{wide}" for sign in (-1, 1))
        body = [
            f'<path class="axis" d="M{left} {rounded(middle)}h{wide}M{left + wide // 2} {top}v{high}"/>',
            f'<path class="plain" d="{slanted}{flat}"/>',
            f'<polyline class="curve" points="{points}"/>',
            text(left + wide / 2, top + high + 11, self.across),
            text(EDGE + 3, middle, self.down, turned=True),
        ]
        for sign in (-1, 1):
            end, cap = left + (sign + 1) * wide / 2, middle - sign * reach + 3
            body += [text(end, top + high + 11, rounded(sign * largest), "number")]
            body += [text(left - 4, cap, f"{sign * self.limit:g}", "number right")]
        return svg(self.title, left + wide + EDGE + 6, top + high + 20, body)


DRAWINGS: dict[str, Grid | Bars | Curve] = {
    "no_mask": Grid("no mask"),
    "boolean_mask": Grid("mask"),
    "biased": Grid("bias"),
    "causal": Grid("causal=True"),
    "top_left_few": Grid("top_left"),
    "bottom_right_few": Grid("bottom_right"),
    "top_left_many": Grid("top_left"),
    "bottom_right_many": Grid("bottom_right"),
    "window_before": Grid("window=(2, 0)"),
    "window_around": Grid("window=(2, 2)"),
    "window_open": Grid("window=(None, 1)"),
    "causal_window": Grid("causal, (2, 2)"),
    "chunk_window": Grid("bottom_right, (2, 0)"),
    "padded": Grid("kv_lengths=[8, 5, 2]", panels=("item 0", "item 1", "item 2")),
    "padded_causal": Grid("kv_lengths=[8, 5, 2], causal=True", panels=("item 0", "item 1", "item 2")),
    "cache": Grid(
        'kv_lengths=[8, 5, 2], causal="bottom_right"',
        rows="new",
        panels=("item 0", "item 1", "item 2"),
    ),
    "alibi": Grid("alibi_slopes=[1, 0.5, 0.25]", panels=("head 0", "head 1", "head 2")),
    "capped": Curve("softcap=30", across="score", down="capped", limit=30),
    "with_sink": Grid("sinks", groups=[(0, "sink"), (1, "keys")], sink=True, column_names=("", *range(8))),
    "blocks": Grid("block-sparse mask"),
    "packed": Grid("cu_seqlens=[0, 3, 8, 12]", rows="tokens", columns="tokens"),
    "packed_causal": Grid("cu_seqlens, causal=True", rows="tokens", columns="tokens"),
    "paged": Grid(
        "block_tables=[[2, 0], [3, -1]]",
        rows="keys",
        panels=("item 0", "item 1"),
        groups=[(4 * page, f"page {page}") for page in range(4)],
        column_names=(0, 1, 2, 3) * 4,
    ),
    "grouped": Grid("grouped heads", rows="query heads", columns="key heads", width=112),
    "some_rows": Grid("rows=[1, 4, 6]", row_names=(1, 4, 6)),
    "column_sums": Bars("column sums"),
}


def draw(variables: dict[str, Any]) -> dict[str, str]:
    """The text of every picture, from the variables that the page's program leaves."""
    return {name: drawing.draw(np.asarray(variables[name], np.float64)) for name, drawing in DRAWINGS.items()}


# ---- SVG ----


def cells(matrix: Any, left: int, top: int, starts: list[int], *, sink: bool) -> list[str]:
    """All cells pale, and over them the weights: as strong as each is beside the largest of its row."""
    largest = matrix.max(axis=None if sink else -1, keepdims=True)
    strength = np.divide(matrix, largest, out=np.zeros_like(matrix), where=largest > 0)
    shades = np.floor(strength * SHADES + 0.5 + 1e-4).astype(int)
    pale, strong = "", defaultdict[tuple[int, str], str](str)
    for (i, j), shade in np.ndenumerate(shades):
        square = f"M{left + starts[j]} {top + STEP * i}h{CELL}v{CELL}h-{CELL}z"
        pale += square
        if shade:
            strong[shade, "sink" if sink and j == 0 else "on"] += square
    paths = [f'<path class="off" d="{pale}"/>']
    for (shade, name), squares in sorted(strong.items()):
        opacity = "" if shade == SHADES else f' opacity="{shade / SHADES:g}"'
        paths.append(f'<path class="{name}"{opacity} d="{squares}"/>')
    return paths


def text(x: float, y: float, words: object, name: str = "", *, turned: bool = False) -> str:
    attributes = f' class="{name}"' if name else ""
    if turned:
        attributes += f' transform="rotate(-90 {rounded(x)} {rounded(y)})"'
    return (
        f'<text x="{rounded(x)}" y="{rounded(y)}"{attributes}>{html.escape(str(words), quote=False)}</text>'
    )


def svg(title: str, width: int, height: int, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="6"/>',
            text(width / 2, 15, title, "title"),
            *body,
            "</svg>\n",
        ]
    )


def rounded(number: float) -> str:
    """To half a pixel."""
    return f"{np.floor(number * 2 + 0.5 + 1e-4) / 2:g}"


# ---- the page ----


def program(page: str) -> str:
    """The page's Python, one block after the other."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL))


def run(page: str) -> dict[str, Any]:
    variables: dict[str, Any] = {"__name__": "masks"}
    exec(compile(program(page), PAGE.name, "exec"), variables)  # noqa: S102
    return variables


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name, picture in draw(run(PAGE.read_text(encoding="utf-8"))).items():
        (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
