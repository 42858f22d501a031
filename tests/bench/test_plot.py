# SPDX-License-Identifier: Apache-2.0
"""The plots of a run: which are drawn, where they go, and what stands in them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from selfattn.bench import plot, report  # noqa: E402

LIMITS = {"peak_gflops": 100.0, "bfloat16_peak_gflops": 200.0, "read_gigabytes_per_second": 25.0}
MACHINE = {
    "cpu": "A Processor",
    "isa": "avx2",
    "date": "2026-11-24T12:00:00+00:00",
    "commit": None,
    "versions": {"selfattn": "0.1.0"},
    "limits": {"1": LIMITS, "2": LIMITS},
}


def row(kind: str, shape: str, threads: int = 1, seconds: float = 0.02, **others: Any) -> report.Result:
    measured = {"median_seconds": seconds, "spread": 0.02, "round_seconds": [seconds, seconds]}
    result = {
        "kind": kind,
        "shape": shape,
        "threads": threads,
        "flops": 10**9,
        "bytes": 10**8,
        "peak_gflops": [100.0, 100.0],
        "bfloat16_peak_gflops": [200.0, 200.0],
        "read_gigabytes_per_second": [25.0, 25.0],
        "precision": "float32",
        "contenders": {"selfattn": measured, "torch": measured | {"median_seconds": 2 * seconds}},
        "absent": {},
        "refused": {},
    }
    return report.compare(result | others)


def document(*results: report.Result) -> dict[str, Any]:
    return {"machine": MACHINE, "results": list(results)}


def decode_row(dtype: str = "float32", **others: Any) -> report.Result:
    return row("decode", "1x4x2x64x16", queries=1, dtype=dtype, precision=None, **others)


def test_every_plot_beside_the_first(tmp_path: Path) -> None:
    rows = [make(threads=n) for n in (1, 2) for make in (operator_row, decode_row, sweep_row)]
    paths = plot.plot(document(*rows), tmp_path / "all.png")
    assert [path.name for path in paths] == [
        "all.png",
        "all-lengths.png",
        "all-roofline.png",
        "all-threads.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def operator_row(**others: Any) -> report.Result:
    return row("operator", "1x2x64x16", **others)


def sweep_row(shape: str = "64", **others: Any) -> report.Result:
    return row("sweep", shape, **others)


def test_one_suite_on_one_thread_has_no_more_than_it_shows(tmp_path: Path) -> None:
    encoder = document(row("encoder", "1x10"))
    assert [path.name for path in plot.plot(encoder, tmp_path / "encoder.png")] == ["encoder.png"]
    sweep = document(sweep_row(), sweep_row("2048"))
    names = [path.name for path in plot.plot(sweep, tmp_path / "sweep.png")]
    assert names == ["sweep.png", "sweep-roofline.png"]


def test_the_lengths_are_in_order() -> None:
    figure = plot.lengths(document(sweep_row("2048", seconds=0.04), sweep_row("64")))
    assert figure is not None
    lines = {line.get_color(): line for line in figure.axes[0].lines}
    ours = lines[plot.COLORS["selfattn"]]
    assert list(ours.get_xdata()) == [64, 2048]
    assert list(ours.get_ydata()) == pytest.approx([0.5, 0.25])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["64", "2k"]


def test_the_roof_bends_where_memory_would_do() -> None:
    figure = plot.roofline(document(operator_row(), decode_row()))
    assert figure is not None
    (roof,) = figure.axes[0].lines
    assert roof.get_xdata()[1] == pytest.approx(100 / 25)
    assert list(roof.get_ydata()[1:]) == [100, 100]


def test_each_precision_is_under_its_roof() -> None:
    rows = [operator_row(), decode_row(dtype="bfloat16"), operator_row(precision="bfloat16")]
    figure = plot.roofline(document(*rows))
    assert figure is not None
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["float32, 1 thread", "bfloat16, 1 thread"]
    assert [axis.lines[0].get_ydata()[-1] for axis in figure.axes] == [100, 200]
    unmeasured = {"peak_gflops": 100.0, "read_gigabytes_per_second": 25.0}
    alone = document(rows[2]) | {"machine": MACHINE | {"limits": {"1": unmeasured}}}
    assert plot.roofline(alone) is None


def test_bars_of_each_precision_are_fractions_of_its_peak() -> None:
    figure = plot.bars(document(operator_row(), operator_row(precision="bfloat16")))
    assert figure is not None
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "fraction of FMA peak",
        "fraction of bfloat16 peak",
    ]
    assert [axis.patches[0].get_height() for axis in figure.axes] == pytest.approx([0.5, 0.25])


def test_threads_are_the_time_on_one_over_that_on_most() -> None:
    figure = plot.threads(document(operator_row(seconds=0.03), operator_row(threads=2, seconds=0.02)))
    assert figure is not None
    heights = {round(bar.get_height(), 3) for bar in figure.axes[0].patches}
    assert heights == {1.5}
    assert plot.threads(document(operator_row(threads=2))) is None


def test_bars_leave_out_who_has_no_number() -> None:
    alone = row("operator", "1x2x128x16")
    del alone["contenders"]["torch"]
    figure = plot.bars(document(operator_row(), alone))
    assert figure is not None
    assert len(figure.axes[0].patches) == 3


def growth_document() -> dict[str, Any]:
    rows = [
        {"axis": axis, "batch": size, "length": size, "ns": 2.0 * size, "model_ns": 1.0 * size, "mib": 0.2}
        for axis in ("length", "batch")
        for size in (64, 2048)
    ]
    return {"growth": rows, "machine": MACHINE}


def drawn(monkeypatch: pytest.MonkeyPatch, *files: Path, to: Path) -> None:
    import plot as script

    monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, files), "--to", str(to)])
    script.main()


def test_growth_is_drawn_beside_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plot as script

    figure = script.growth(growth_document()["growth"])
    model, ours = figure.axes[0].lines
    assert (list(model.get_ydata()), list(ours.get_ydata())) == ([64, 2048], [128, 4096])
    assert [text.get_text() for text in figure.axes[2].get_xticklabels()] == ["64", "2k"]
    (tmp_path / "growth.json").write_text(json.dumps(growth_document()))
    drawn(monkeypatch, tmp_path / "growth.json", to=tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_drawn_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "growth.json").write_text(json.dumps(growth_document()))
    with pytest.raises(SystemExit):
        drawn(monkeypatch, tmp_path / "growth.json", tmp_path / "growth.json", to=tmp_path / "growth.png")


def test_files_are_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {"limits": {"1": {"bfloat16_peak_gflops": 200.0}}}
    both = [document(operator_row(), operator_row(threads=2)), document(operator_row(precision="bfloat16"))]
    both[1]["machine"] = MACHINE | narrow
    for name, content in zip("ab", both, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    drawn(monkeypatch, tmp_path / "a.json", tmp_path / "b.json", to=tmp_path / "out.png")
    assert (tmp_path / "out-threads.png").exists()
    assert (tmp_path / "out-roofline.png").exists()
