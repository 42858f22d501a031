"""The plot of a run, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from selfattn.bench.report import Result, label, limit_of, provenance

COLORS = {
    "selfattn": "#d1495b",
    "numpy": "#c9c9c9",
    "torch": "#edae49",
    "onnxruntime": "#66a182",
    "openvino": "#2e4057",
}


def plot(document: dict[str, Any], path: Path) -> None:
    """Bars of the fraction of the measured limit: a panel for each kind and number of threads."""
    panels: dict[tuple[str, int], list[Result]] = {}
    for result in document["results"]:
        panels.setdefault((result["kind"], result["threads"]), []).append(result)
    columns = max(map(len, panels.values()))
    figure = Figure(figsize=(max(9, columns), 0.4 + 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (panel, results) in zip(axes, panels.items(), strict=True):
        draw_panel(axis, *panel, results)
    handles = {bars.get_label(): bars for axis in axes for bars in axis.containers}
    figure.legend(handles=handles.values(), loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(provenance(document["machine"]), fontsize=7, color="#666666")
    figure.savefig(path, dpi=150)


def draw_panel(axis: Any, kind: str, threads: int, results: list[Result]) -> None:
    limit = limit_of(kind)
    names = [name for name in COLORS if any(name in result["contenders"] for result in results)]
    width = 0.8 / max(1, len(names))
    for offset, name in enumerate(names):
        bars = [
            (place + (offset - (len(names) - 1) / 2) * width, measured[limit.fraction])
            for place, result in enumerate(results)
            if (measured := result["contenders"].get(name))
        ]
        axis.bar(*zip(*bars, strict=True), width * 0.92, label=name, color=COLORS[name])
    axis.set_title(f"{kind}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=9)
    axis.set_ylabel(f"fraction of {limit.words}", fontsize=8)
    axis.set_xticks(range(len(results)), [label(each).replace(" ", "\n") for each in results], fontsize=8)
    axis.set_ylim(0, max(1, axis.get_ylim()[1]))
    axis.tick_params(length=0, labelsize=8)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
