# SPDX-License-Identifier: Apache-2.0
"""The plots of a run, with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from selfattn.bench.report import (
    OURS,
    READ,
    SWEEP,
    Limit,
    Result,
    label,
    limit_for,
    limit_of,
    precision_of,
    provenance,
    table_name,
    words_of_threads,
)

COLORS = {
    OURS: "#d1495b",
    "numpy": "#b3b3b3",
    "torch": "#e09f2d",
    "onnxruntime": "#5a9a75",
    "openvino": "#2e4057",
}
Document = dict[str, Any]  # what a run writes with --json
GREY, PALE = "#666666", "#e5e5e5"
MARKERS = {"operator": "o", "sweep": "D", "decode": "s"}


def plot(document: Document, path: Path) -> list[Path]:
    """Draws what the results allow, the first picture to the path and the others beside it."""
    drawn = {name: draw(document) for name, draw in PLOTS.items()}
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    paths = [path if not place else beside(path, name) for place, name in enumerate(figures)]
    for figure, target in zip(figures.values(), paths, strict=True):
        save(figure, document["machine"], target)
    return paths


def beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{path.suffix}")


def save(figure: Figure, facts: dict[str, Any], path: Path) -> None:
    figure.supxlabel(provenance(facts), fontsize=7, color=GREY)
    figure.savefig(path, dpi=150)


# ---- bars: a panel for each suite and number of threads ----


def bars(document: Document) -> Figure | None:
    """The fraction of the measured limit."""
    results = document["results"]
    suites = ("operator", "decode", "encoder")
    panels = grouped(results, suites, ("kind", "precision", "random_model", "threads"))
    if not panels:
        return None
    figure, axes = stacked([ticks(rows) for rows in panels])
    for axis, rows in zip(axes, panels, strict=True):
        heights = {name: [fraction(row, name) for row in rows] for name in names_of(rows)}
        draw_bars(axis, heights, ticks(rows))
        axis.set_title(
            f"{table_name(rows[0])}, {words_of_threads(rows[0]['threads'])}", loc="left", fontsize=9
        )
        axis.set_ylabel(f"fraction of {limit_of(rows[0]).words}", fontsize=8)
        axis.set_ylim(0, max(1, axis.get_ylim()[1]))
    legend(figure, names_of(results), "s")
    return figure


def fraction(row: Result, name: str) -> float | None:
    """Of the limit, if the contender was measured."""
    measured = row["contenders"].get(name)
    return None if measured is None else float(measured[limit_of(row).fraction])


def ticks(rows: list[Result]) -> list[str]:
    return [label(row).replace(" ", "\n") for row in rows]


def stacked(panels: list[list[str]]) -> tuple[Figure, Any]:
    """A figure with its panels one below the other, wide enough for the labels of each."""
    width = max(len(labels) * (0.25 + 0.08 * longest_line(labels)) for labels in panels)
    figure = Figure(figsize=(max(9, width), 0.4 + 2.6 * len(panels)), layout="constrained")
    return figure, figure.subplots(len(panels), squeeze=False)[:, 0]


def longest_line(labels: list[str]) -> int:
    return max(len(line) for text in labels for line in text.splitlines())


def draw_bars(axis: Any, heights: dict[str, list[float | None]], labels: list[str]) -> None:
    """A group of bars for each label, one of each contender."""
    width = 0.8 / max(1, len(heights))
    for offset, (name, values) in enumerate(heights.items()):
        shift = (offset - (len(heights) - 1) / 2) * width
        shown = [(place + shift, value) for place, value in enumerate(values) if value is not None]
        axis.bar(*zip(*shown, strict=True), width * 0.92, color=COLORS[name])
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    plain(axis)
    axis.grid(axis="y", color=PALE, linewidth=0.8)


# ---- the roofline: rate over arithmetic intensity, a panel for each precision and number of threads ----


def roofline(document: Document) -> Figure | None:
    """Floating-point operations in a second over those for each byte of what goes in and out, once."""
    limits = document["machine"].get("limits", {})
    usable = [
        row | {"precision": precision_of(row)}
        for row in document["results"]
        if "bytes" in row and roof_of(row).measured in limits.get(str(row["threads"]), {})
    ]
    panels = grouped(usable, ("operator", "decode", "sweep"), ("precision", "threads"))
    if not panels:
        return None
    figure = Figure(figsize=(max(6.5, 5.5 * len(panels)), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, rows in zip(axes, panels, strict=True):
        draw_roofline(axis, rows, limits[str(rows[0]["threads"])])
        axis.set_title(precision_and_threads(rows[0]), loc="left", fontsize=9)
        axis.set_xlabel("arithmetic intensity, FLOP/byte", fontsize=8)
    axes[0].set_ylabel("GFLOP/s", fontsize=8)
    kinds = {kind: MARKERS[kind] for kind in MARKERS if any(row["kind"] == kind for row in usable)}
    legend(figure, names_of(usable), "o", **(kinds if "decode" in kinds else {}))
    return figure


def draw_roofline(axis: Any, rows: list[Result], limits: dict[str, float]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    names = names_of(rows)
    for place, name in enumerate(names):
        aside = 2 ** (0.15 * (place - (len(names) - 1) / 2))  # those of the same intensity stand side by side
        for kind, marker in MARKERS.items():
            points = [
                (aside * row["flops"] / row["bytes"], gflops(row, name))
                for row in rows
                if has(row, kind, name)
            ]
            if points:
                style = {"color": COLORS[name], "edgecolors": "white", "linewidths": 0.5, "zorder": 3}
                axis.scatter(*zip(*points, strict=True), s=26, marker=marker, **style)
    draw_roof(axis, limits, roof_of(rows[0]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    plain(axis)
    axis.grid(color=PALE, linewidth=0.8)


def roof_of(row: Result) -> Limit:
    """The peak of the products: decode has it too, where its queries are many."""
    return limit_for("operator", precision_of(row))


def draw_roof(axis: Any, limits: dict[str, float], roof: Limit) -> None:
    """What memory delivers up to the ridge, and what the multiply-adds reach from there on."""
    peak, read = limits[roof.measured], limits[READ.measured]
    low, high = axis.get_xlim()
    low = min(low, peak / read / 8)
    axis.plot([low, peak / read, high], [low * read, peak, peak], color="black", linewidth=1.2, zorder=2)
    axis.annotate(f"{roof.words} {peak:.0f} GFLOP/s", (high, peak), (-2, 4), **note("right"))
    axis.annotate(f"read {read:.0f} GB/s", (peak / read / 2, peak / 2), (-8, 0), **note("right"))
    axis.set_xlim(low, high)
    axis.set_ylim(top=1.6 * peak)


def note(side: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "ha": side, "fontsize": 8, "color": GREY}


def has(row: Result, kind: str, name: str) -> bool:
    return row["kind"] == kind and name in row["contenders"]


def gflops(row: Result, name: str) -> float:
    return float(row["flops"] / row["contenders"][name]["median_seconds"] / 1e9)


# ---- lengths: a line for each contender ----


def lengths(document: Document) -> Figure | None:
    """The fraction of the peak over the length of the sequences."""
    results = document["results"]
    panels = grouped(results, ("sweep",), ("precision", "threads"))
    if not panels:
        return None
    figure = Figure(figsize=(max(6.5, 5.5 * len(panels)), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, rows in zip(axes, panels, strict=True):
        rows = sorted(rows, key=lambda row: int(row["shape"]))
        for name in reversed(names_of(rows)):
            points = [(int(row["shape"]), fraction(row, name)) for row in rows if has(row, "sweep", name)]
            draw_line(axis, name, *zip(*points, strict=True))
        axis.set_xscale("log", base=2)
        every = [int(row["shape"]) for row in rows]
        axis.set_xticks(every, [thousands(length) for length in every])
        axis.set_title(precision_and_threads(rows[0]), loc="left", fontsize=9)
        axis.set_ylabel(f"fraction of {limit_of(rows[0]).words}", fontsize=8)
        axis.set_xlabel(f"length of each sequence ({SWEEP})", fontsize=8)
        axis.set_ylim(0, max(1, axis.get_ylim()[1]))
        plain(axis)
        axis.grid(axis="y", color=PALE, linewidth=0.8)
    legend(figure, names_of(results), "o")
    return figure


def draw_line(axis: Any, name: str, x: Iterable[float], y: Iterable[float]) -> None:
    ours = name == OURS
    axis.plot(
        x, y, marker="o", color=COLORS[name], linewidth=2.2 if ours else 1.4, markersize=5 if ours else 4
    )


def thousands(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)


# ---- threads: how much faster with more of them ----


def threads(document: Document) -> Figure | None:
    """The time on one thread over that on the most threads, of the shapes that were measured on both."""
    results = document["results"]
    most = max((row["threads"] for row in results), default=1)
    panels: dict[str, dict[str, tuple[Result, Result]]] = {}
    on_one = {(table_name(row), label(row)): row for row in results if row["threads"] == 1}
    for row in results:
        if 1 < row["threads"] == most and row["kind"] != "sweep" and (table_name(row), label(row)) in on_one:
            pair = on_one[table_name(row), label(row)], row
            panels.setdefault(table_name(row), {})[label(row)] = pair
    return draw_threads(panels, most) if panels else None


def draw_threads(panels: dict[str, dict[str, tuple[Result, Result]]], most: int) -> Figure:
    figure, axes = stacked([ticks([many for _, many in pairs.values()]) for pairs in panels.values()])
    for axis, (title, pairs) in zip(axes, panels.items(), strict=True):
        names = names_of([many for _, many in pairs.values()])
        heights = {name: [speed_up(*pair, name) for pair in pairs.values()] for name in names}
        draw_bars(axis, heights, ticks([many for _, many in pairs.values()]))
        axis.axhline(most, color="black", linewidth=1, linestyle="--")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylabel(f"time on 1 / on {most} threads", fontsize=8)
        axis.set_ylim(0, max(1.25 * most, axis.get_ylim()[1]))
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    legend(figure, names_of([pair[1] for pairs in panels.values() for pair in pairs.values()]), "s")
    return figure


def speed_up(one: Result, many: Result, name: str) -> float | None:
    if name not in one["contenders"] or name not in many["contenders"]:
        return None
    seconds = (row["contenders"][name]["median_seconds"] for row in (one, many))
    return float(next(seconds) / next(seconds))


# ---- what they share ----

PLOTS: dict[str, Callable[[Document], Figure | None]] = {
    "bars": bars,
    "lengths": lengths,
    "roofline": roofline,
    "threads": threads,
}


def grouped(results: list[Result], kinds: Iterable[str], fields: tuple[str, ...]) -> list[list[Result]]:
    """The rows of these suites, those that agree in the fields together."""
    panels: dict[tuple[Any, ...], list[Result]] = {}
    for row in results:
        if row["kind"] in kinds:
            panels.setdefault(tuple(row.get(field) for field in fields), []).append(row)
    return list(panels.values())


def names_of(rows: list[Result]) -> list[str]:
    return [name for name in COLORS if any(name in row["contenders"] for row in rows)]


def precision_and_threads(row: Result) -> str:
    return f"{precision_of(row)}, {words_of_threads(row['threads'])}"


def legend(figure: Figure, names: list[str], marker: str, **kinds: str) -> None:
    """The contenders by colour, and the suites by their marker, above the panels."""
    handles = [handle(name, marker, COLORS[name]) for name in names]
    handles += [handle(kind, shape, GREY) for kind, shape in kinds.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)


def handle(text: str, marker: str, color: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markersize=7, color=color, label=text)


def plain(axis: Any) -> None:
    """Light lines behind what is drawn, and no frame."""
    axis.tick_params(which="both", length=0, labelsize=8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
