"""The pages' tables: what is between the markers comes from a measurement, and nothing else changes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import table  # noqa: E402

from selfattn.bench import report  # noqa: E402

MARKED = ("operator", "operator-bfloat16", "encoder", "encoder-bfloat16", "decode", "footprint")

README = """before
<!-- bench:operator -->
old numbers
<!-- /bench -->
between
<!-- bench:footprint -->
<!-- /bench -->
after
"""


def measured(shape: str = "1x2x3x4", threads: int = 1, **seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "kind": "operator",
        "shape": shape,
        "threads": threads,
        "flops": 10**9,
        "peak_gflops": [100.0, 100.0],
        "contenders": {
            name: {"median_seconds": s, "spread": 0.04, "round_seconds": [s, s]}
            for name, s in seconds.items()
        },
        "absent": {"numpy": "no module named numpy"},
        "refused": {"openvino": "bfloat16: error 1.0e-03 above the tolerance 1.0e-05"},
    }
    return report.compare(result)


def document(*results: dict[str, Any]) -> dict[str, Any]:
    machine = {
        "cpu": "A Processor",
        "isa": "avx2",
        "date": "2026-11-24T12:00:00+00:00",
        "commit": "0123456789ab",
        "python": "3.11.7",
        "versions": {"selfattn": "0.1.0", "torch": "2.13.0", "onnx": None},
        "limits": {"1": {"peak_gflops": 100.4, "read_gigabytes_per_second": 10.0}},
    }
    return {"machine": machine, "settings": {"rounds": 9, "min_time": 0.05}, "results": list(results)}


def run(tmp_path: Path, contents: Any, readme: str = README) -> str:
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "run.json").write_text(json.dumps(contents))
    assert table.main([str(tmp_path / "run.json"), "--pages", str(tmp_path / "README.md")]) == 0
    return (tmp_path / "README.md").read_text()


def test_the_numbers_of_a_run(tmp_path: Path) -> None:
    text = run(tmp_path, document(measured(selfattn=0.02, torch=0.03), measured("5x6x7x8", 2, selfattn=0.04)))
    assert "old numbers" not in text
    assert (
        "| shape | threads | selfattn | numpy | torch | openvino | of peak | best peer's time / ours |"
        in text
    )
    assert "| 1x2x3x4 | 1 | 50.0 ±2 % | absent | 33.3 ±2 % | WRONG | 50 % | 1.50 ±0.00 (torch) |" in text
    assert "| 5x6x7x8 | 2 | 25.0 ±2 % | absent | - | WRONG | 25 % | - |" in text
    assert "openvino is WRONG: bfloat16" in text


def test_a_row_that_selfattn_loses_is_there_too(tmp_path: Path) -> None:
    assert "| 0.50 ±0.00 (torch) |" in run(tmp_path, document(measured(selfattn=0.02, torch=0.01)))


def test_where_the_numbers_come_from(tmp_path: Path) -> None:
    text = run(tmp_path, document(measured(selfattn=0.02, torch=0.03)))
    for fact in ("A Processor (avx2)", "2026-11-24", "commit 0123456789ab", "Python 3.11.7", "torch 2.13.0"):
        assert fact in text
    assert "onnx None" not in text
    assert "1 thread(s): FMA peak 100 GFLOP/s" in text
    assert "`selfattn bench operator --threads 1 --shapes 1x2x3x4 --vs numpy,torch,openvino " in text
    assert "--rounds 9 --min-time 0.05 --json run.json`" in text


def test_the_command_does_not_show_where_the_file_lies(tmp_path: Path) -> None:
    assert str(tmp_path) not in run(tmp_path, document(measured(selfattn=0.02)))
    assert table.shown(ROOT / "bench" / "results" / "run.json") == "bench/results/run.json"


def test_everything_else_stays(tmp_path: Path) -> None:
    text = run(tmp_path, document(measured(selfattn=0.02)))
    assert text.startswith("before\n<!-- bench:operator -->\n")
    assert text.endswith("between\n<!-- bench:footprint -->\n<!-- /bench -->\nafter\n")


def test_decode(tmp_path: Path) -> None:
    rows = []
    for queries in (1, 4):
        row = measured("1x32x8x4096x128", selfattn=0.1, torch=0.4)
        row |= {"kind": "decode", "queries": queries, "dtype": "bfloat16", "bytes": 2 * 10**9}
        rows.append(report.compare(row | {"read_gigabytes_per_second": [25.0, 25.0]}))
    text = run(tmp_path, document(*rows), README.replace("operator", "decode"))
    assert "| shape | threads | selfattn | numpy | torch | openvino | of read bandwidth |" in text
    assert "| 1x32x8x4096x128 q4 bfloat16 | 1 | 20.0 ±2 % | absent | 5.0 ±2 % | WRONG | 80 % | 4.00 ±" in text
    assert "1 thread(s): read bandwidth 10 GB/s" in text
    assert (
        "`selfattn bench decode --threads 1 --shapes 1x32x8x4096x128 --queries 1,4 --caches bfloat16 " in text
    )


def test_an_encoder_in_bfloat16(tmp_path: Path) -> None:
    row = measured("1x10", selfattn=0.002, torch=0.003)
    row |= {"kind": "encoder", "precision": "bfloat16", "bfloat16_peak_gflops": [1000.0, 1000.0]}
    contents = document(report.compare(row))
    contents["machine"]["limits"]["1"]["bfloat16_peak_gflops"] = 998.0
    text = run(tmp_path, contents, README.replace("operator", "encoder-bfloat16"))
    assert "bfloat16, milliseconds (less is better)" in text
    assert "| 1x10 | 1 | 2.00 ±2 % | absent | 3.00 ±2 % | WRONG | 50 % | 1.50 ±0.00 (torch) |" in text
    assert "1 thread(s): bfloat16 peak 998 GFLOP/s" in text
    assert "`selfattn bench encoder --threads 1 --precision bfloat16 --shapes 1x10 " in text


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    contents = document(measured(selfattn=0.02))
    assert run(tmp_path, contents, run(tmp_path, contents)) == run(tmp_path, contents)


def test_the_footprint(tmp_path: Path) -> None:
    text = run(tmp_path, {"import, ms above numpy": 12.5, "wheel, MB": None})
    assert "old numbers" in text
    assert "| import, ms above numpy | 12.50 |" in text
    assert "| wheel, MB | - |" in text
    assert "`python bench/footprint.py --json run.json`" in text


def of_script(name: str, rows: list[Any], **more: Any) -> dict[str, Any]:
    return {name: rows, **more, "settings": {"threads": 1}, "machine": document()["machine"]}


def readme_for(name: str) -> str:
    return README.replace("operator", name)


def test_sizes(tmp_path: Path) -> None:
    plain = {"head_dim": 16, "value_dim": 16, "layout": "contiguous", "of_peak": 0.675}
    beside = {"neighbour": 48, "neighbour_of_peak": 0.8, "ratio": 0.95, "quartiles": [0.9, 0.98], "bar": 0.9}
    rows = [plain, plain | {"head_dim": 40, "value_dim": 40} | beside]
    text = run(tmp_path, of_script("sizes", rows), readme_for("sizes"))
    assert "| 16 | 16 | contiguous | 68 % |  |  |  |" in text
    assert "| 40 | 40 | contiguous | 68 % | 48: 80 % | 0.95 ±0.04 | 0.90 |" in text
    assert "`python bench/sizes.py --threads 1 --json run.json`" in text


def test_isa(tmp_path: Path) -> None:
    row = {"shape": "1x2x3x4", "threads": 2, "ms": {"avx512": 1.0, "avx2": 1.25}}
    row |= {"ratio": 0.8, "quartiles": [0.7, 0.9], "bar": 0.95}
    rows = [row, row | {"repeated": 2, "slow": 0}, row | {"repeated": 1}]
    peaks = {"2": {"avx512": 236.0, "avx2": 235.0}}
    text = run(tmp_path, of_script("isa", rows, peak_gflops=peaks), readme_for("isa"))
    assert "| shape | threads | avx512, ms | avx2, ms | ratio | at least |" in text
    assert "| 1x2x3x4 | 2 | 1 | 1.25 | 0.80 ±0.10 | 0.95 |" in text
    assert "2 thread(s): FMA peak, GFLOP/s: 236 (avx512), 235 (avx2)." in text
    assert "\n\n- In all rows: 3 x measured again, the machine gave less than it can\n\n`python" in text


def test_every_other_row_of_growth(tmp_path: Path) -> None:
    rows = [
        {"axis": axis, "batch": size, "length": 128, "ns": 200.0, "model_ns": 150.0, "mib": 0.3}
        for axis in ("length", "batch")
        for size in (1, 4, 16)
    ]
    text = run(tmp_path, of_script("growth", rows), readme_for("growth"))
    assert text.count("| 16 | 128 | 200 | 150 | 75 % | 0.30 |") == 2
    assert "| 4 | 128 |" not in text


def test_soak(tmp_path: Path) -> None:
    rows = [["with the model", 137.5, None], ["growth in the last quarter", 0.04, 1.0]]
    text = run(tmp_path, of_script("soak", rows), readme_for("soak"))
    assert "| with the model | 137.5 |  |" in text
    assert "| growth in the last quarter | 0.0 | 1 |" in text


@pytest.mark.parametrize(
    ("contents", "readme", "message"),
    [
        (document(measured(selfattn=1)), "no markers\n", "0 places <!-- bench:operator -->"),
        (document(measured(selfattn=1)), README + README, "2 places <!-- bench:operator -->"),
        (document(), README, "no results"),
        ({"words": "only"}, README, "neither results"),
    ],
)
def test_what_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: Any, readme: str, message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        run(tmp_path, contents, readme)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == readme


def test_the_pages_have_every_marker_once() -> None:
    texts = [page.read_text(encoding="utf-8") for page in table.PAGES]
    for kind in (*MARKED, *table.SCRIPTS):
        assert table.replace(texts, kind, "new") != texts
