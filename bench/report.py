"""The table, the JSON file and the plot of a run."""

import json
from pathlib import Path
from typing import Any

OURS = "selfattn"
CELL = 15
COLORS = {
    "selfattn": "#d1495b",
    "numpy": "#c9c9c9",
    "torch": "#edae49",
    "onnxruntime": "#66a182",
    "openvino": "#2e4057",
}


def compare(result: dict[str, Any]) -> dict[str, Any]:
    """Adds GFLOP/s and fraction of peak of every contender, and the ratio of the best peer's time to ours."""
    peak = sum(result["peak_gflops"]) / len(result["peak_gflops"])
    contenders = result["contenders"]
    for measured in contenders.values():
        measured["gflops"] = result["flops"] / measured["median_seconds"] / 1e9
        measured["fraction_of_peak"] = measured["gflops"] / peak
    peers = {name: measured["median_seconds"] for name, measured in contenders.items() if name != OURS}
    if peers and OURS in contenders:
        best = min(peers, key=peers.__getitem__)
        result["best_peer"] = best
        result["ratio_to_best_peer"] = peers[best] / contenders[OURS]["median_seconds"]
    return result


def header(kind: str, threads: int, names: list[str]) -> str:
    unit = "GFLOP/s" if kind == "operator" else "milliseconds"
    title = f"\n{kind}, float32, {threads} thread(s): {unit}, median ± half the interquartile range"
    columns = f"{'shape':<14}" + "".join(f"{name:>{CELL}}" for name in names)
    return f"{title}\n{columns}{'of peak':>9}  time of the best peer / ours"


def row(result: dict[str, Any], names: list[str]) -> str:
    """One line. Whoever wins, the shape is printed; a contender without a number says why it has none."""
    cells = "".join(f"{cell(result, name):>{CELL}}" for name in names)
    ours = result["contenders"].get(OURS)
    fraction = f"{ours['fraction_of_peak']:>9.2f}" if ours else f"{'-':>9}"
    ratio = f"{result['ratio_to_best_peer']:.2f} x  {result['best_peer']}" if "best_peer" in result else "-"
    return f"{result['shape']:<14}{cells}{fraction}  {ratio}"


def cell(result: dict[str, Any], name: str) -> str:
    if name in result["contenders"]:
        measured = result["contenders"][name]
        operator = result["kind"] == "operator"
        number = measured["gflops"] if operator else measured["median_seconds"] * 1e3
        digits = 1 if operator else 2 if number < 100 else 0
        return f"{number:.{digits}f} ±{measured['spread'] * 50:.0f} %"
    return "WRONG" if name in result["refused"] else "absent"


def footnotes(results: list[dict[str, Any]]) -> list[str]:
    """Who was absent or refused, and where the peak moved so much that the row should be run again."""
    notes = dict.fromkeys(
        f"{name} is absent: {reason}" for result in results for name, reason in result["absent"].items()
    )
    for result in results:
        place = f"{result['shape']}, {result['threads']} thread(s)"
        notes.update({f"{place}: {name} is WRONG: {why}": None for name, why in result["refused"].items()})
        before, after = result["peak_gflops"]
        if abs(before - after) > 0.05 * max(before, after):
            notes[f"{place}: the peak moved from {before:.0f} to {after:.0f} GFLOP/s, run it again"] = None
    return list(notes)


def write_json(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of the fraction of the measured peak: a panel for each kind and number of threads."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in report["results"]:
        panels.setdefault((result["kind"], result["threads"]), []).append(result)
    figure = Figure(figsize=(9, 0.4 + 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (panel, results) in zip(axes, panels.items(), strict=True):
        draw_panel(axis, *panel, results)
    handles = {bars.get_label(): bars for axis in axes for bars in axis.containers}
    figure.legend(handles=handles.values(), loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(provenance(report["machine"]), fontsize=7, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_panel(axis: Any, kind: str, threads: int, results: list[dict[str, Any]]) -> None:
    names = [name for name in COLORS if any(name in result["contenders"] for result in results)]
    width = 0.8 / max(1, len(names))
    for offset, name in enumerate(names):
        bars = [
            (place + (offset - (len(names) - 1) / 2) * width, measured["fraction_of_peak"])
            for place, result in enumerate(results)
            if (measured := result["contenders"].get(name))
        ]
        axis.bar(*zip(*bars, strict=True), width * 0.92, label=name, color=COLORS[name])
    axis.set_title(f"{kind}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=9)
    axis.set_ylabel("fraction of FMA peak", fontsize=8)
    axis.set_xticks(range(len(results)), [result["shape"] for result in results], fontsize=8)
    axis.set_ylim(0, max(1, axis.get_ylim()[1]))
    axis.tick_params(length=0, labelsize=8)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def provenance(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    cpu, date = f"{machine['cpu']} ({machine['isa']})", machine["date"][:10]
    return f"{cpu}, {date}, commit {machine['commit']}\n{versions}"
