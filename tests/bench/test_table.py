# SPDX-License-Identifier: Apache-2.0
"""The pages' tables: what is between the markers comes from a measurement, and nothing else changes."""

import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import table  # noqa: E402

from selfattn.bench import report  # noqa: E402

SPEEDS = ("operator", "operator-bfloat16", "encoder", "encoder-bfloat16", "decode")
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))

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


def run(tmp_path: Path, contents: Any, readme: str = README, *options: str) -> str:
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "run.json").write_text(json.dumps(contents))
    assert table.main([str(tmp_path / "run.json"), "--pages", str(tmp_path / "README.md"), *options]) == 0
    return (tmp_path / "README.md").read_text()


def test_the_numbers_of_a_run(tmp_path: Path) -> None:
    text = run(tmp_path, document(measured(selfattn=0.02, torch=0.03), measured("5x6x7x8", 2, selfattn=0.04)))
    assert "old numbers" not in text
    assert (
        "| shape | threads | selfattn | numpy | torch | openvino | peak, GFLOP/s | of peak |"
        " best peer's time / ours |" in text
    )
    assert (
        "| 1x2x3x4 | 1 | 50.0 ±2 % | absent | 33.3 ±2 % | WRONG | 100.0 | 50 % | 1.50 ±0.00 (torch) |" in text
    )
    assert "| 5x6x7x8 | 2 | 25.0 ±2 % | absent | - | WRONG | 100.0 | 25 % | - |" in text
    assert "openvino is WRONG: bfloat16" in text


def test_a_row_that_selfattn_loses_is_there_too(tmp_path: Path) -> None:
    assert "| 0.50 ±0.00 (torch) |" in run(tmp_path, document(measured(selfattn=0.02, torch=0.01)))


def test_where_the_numbers_come_from(tmp_path: Path) -> None:
    text = run(tmp_path, document(measured(selfattn=0.02, torch=0.03)))
    for fact in ("A Processor (avx2)", "2026-11-24", "commit 0123456789ab", "Python 3.11.7", "torch 2.13.0"):
        assert fact in text
    assert "onnx None" not in text
    assert (
        "*Of peak* is selfattn's rate over the peak of the same row: GFLOP/s of fused multiply-adds" in text
    )
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
    assert (
        "| shape | threads | selfattn | numpy | torch | openvino | read bandwidth, GB/s | of bandwidth |"
        in text
    )
    assert (
        "| 1x32x8x4096x128 q4 bfloat16 | 1 | 20.0 ±2 % | absent | 5.0 ±2 % | WRONG | 25.0 | 80 % | 4.00 ±"
        in text
    )
    assert "over the read bandwidth of the same row: GB/s of reads of memory" in text
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
    assert "| selfattn, GFLOP/s | peak, GFLOP/s | of peak |" in text
    assert "| 2.00 ±2 % | absent | 3.00 ±2 % | WRONG | 500.0 | 1000.0 | 50 % | 1.50 ±0.00 (torch) |" in text
    assert "GFLOP/s of bfloat16 products on registers alone" in text
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
    plain = {"head_dim": 16, "value_dim": 16, "layout": "contiguous", "of_peak": 0.675, "peak_gflops": 100.0}
    beside = {"neighbour": 48, "neighbour_of_peak": 0.8, "ratio": 0.95, "quartiles": [0.9, 0.98], "bar": 0.9}
    rows = [plain, plain | {"head_dim": 40, "value_dim": 40} | beside]
    text = run(tmp_path, of_script("sizes", rows), readme_for("sizes"))
    assert "| 16 | 16 | contiguous | 67.5 | 100.0 | 68 % |  |  |  |" in text
    assert "| 40 | 40 | contiguous | 67.5 | 100.0 | 68 % | 48 | 80.0 | 0.84 ±0.04 |" in text
    assert "`python bench/sizes.py --threads 1 --json run.json`" in text


def test_isa(tmp_path: Path) -> None:
    row = {"shape": "1x2x3x4", "threads": 2, "ms": {"avx512": 1.0, "avx2": 1.25}}
    row |= {"ratio": 0.7, "quartiles": [0.7, 0.9], "bar": 0.95}
    rows = [row, row | {"repeated": 2, "slow": 0}, row | {"repeated": 1}]
    peaks = {"2": {"avx512": 236.0, "avx2": 235.0}}
    text = run(tmp_path, of_script("isa", rows, peak_gflops=peaks), readme_for("isa"))
    assert "| shape | threads | avx512, ms | avx2, ms | ratio |" in text
    assert "| 1x2x3x4 | 2 | 1 | 1.25 | 0.80 ±0.10 |" in text  # of the printed times
    assert "FMA peak on 2 threads: 236.0 GFLOP/s with avx512 and 235.0 GFLOP/s with avx2." in text
    assert "Whether the peak moved was not recorded for this table." in text
    assert "again" not in text


def test_threads(tmp_path: Path) -> None:
    scaling = {"part": "scaling", "case": "1x2", "figures": {"ms, 1 thread": 2.0, "ms, 2 threads": 1.25}}
    callers = {"figures": {"calls/s, 1 caller": 200000.0, "calls/s, 8 callers": 190000.0}}
    rest = {"ratio": 1.7, "quartiles": [1.5, 1.7], "bar": 1.85, "peak_gflops": [100.0, 99.0]}
    rows = [scaling | rest, scaling | callers | rest, scaling | rest | {"figures": {}}]
    text = run(tmp_path, of_script("threads", rows), readme_for("threads"))
    assert "| scaling | 1x2 | 1 thread: 2 ms, 2 threads: 1.25 ms | 1.60 ±0.10 |" in text
    assert "| scaling | 1x2 | 1 caller: 200000 calls/s, 8 callers: 190000 calls/s | 0.95 ±0.10 |" in text
    assert "| scaling | 1x2 |  | 1.70 ±0.10 |" in text
    assert "1.85" not in text


def test_gradients(tmp_path: Path) -> None:
    full = {"what": "full", "shape": "1x2", "threads": 1, "gflops": 80.0, "backward_gflops": 70.0}
    step = {"what": "training step", "shape": "6 layers", "threads": 1, "ms": 100.0}
    ratio = {"torch_over_ours": 1.5, "quartiles": [1.4, 1.6]}
    rows = [full | ratio | {"peak_gflops": [99.0, 100.0]}, full | {"backward_of_peak": 0.7}, step]
    text = run(tmp_path, of_script("gradients", rows), readme_for("gradients"))
    assert "| full | 1x2 | 1 | 80.0 GFLOP/s | 70.0 | 100.0 | 70 % | 1.50 ±0.10 |" in text
    assert "| full | 1x2 | 1 | 80.0 GFLOP/s | 70.0 | 100.0 | 70 % | - |" in text
    assert "| training step | 6 layers | 1 | 100 ms |  |  |  | - |" in text
    assert "was not recorded for training step 6 layers on 1 thread." in text


def test_every_other_row_of_growth(tmp_path: Path) -> None:
    rows = [
        {"axis": axis, "batch": size, "length": 128, "ns": 200.0, "model_ns": 150.0, "mib": 0.3}
        for axis in ("length", "batch")
        for size in (1, 4, 16)
    ]
    text = run(tmp_path, of_script("growth", rows), readme_for("growth"))
    assert text.count("| 16 | 128 | 200 | 163.8 | 218.5 | 75 % | 0.30 |") == 2
    assert "| 4 | 128 |" not in text


def test_soak(tmp_path: Path) -> None:
    rows = [["with the model", 137.5, None], ["growth in the last quarter", 0.04, 1.0], ["most", 61.0, 60.0]]
    text = run(tmp_path, of_script("soak", rows), readme_for("soak"))
    assert "| with the model | 137.5 |  |" in text
    assert "| growth in the last quarter | 0.0 | 1 |" in text
    assert "| most | 61.0 | 60 (exceeded) |" in text


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


# ---- no row is published whose limit moved ----


def with_peaks(row: dict[str, Any], *peaks: float) -> dict[str, Any]:
    return report.compare(row | {"peak_gflops": list(peaks)})


def test_a_row_whose_peak_moved_is_an_error_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = with_peaks(measured("5x6x7x8", 2, selfattn=0.01), 100.0, 80.0)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, document(measured(selfattn=0.02), moved))
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "operator: the peak moved by more than 3 % beside" in message
    assert "5x6x7x8 on 2 threads: FMA peak 85.0 to 95.0 GFLOP/s" in message
    assert "measure again: selfattn bench operator --threads 1,2 --shapes 1x2x3x4,5x6x7x8 " in message
    assert "1x2x3x4 on" not in message
    assert (tmp_path / "README.md").read_text() == README


def test_a_row_that_is_left_out_is_named(tmp_path: Path) -> None:
    moved = with_peaks(measured("5x6x7x8", 2, selfattn=0.01), 100.0, 80.0)
    text = run(tmp_path, document(measured(selfattn=0.02), moved), README, "--leave-out")
    assert "| 1x2x3x4 | 1 |" in text
    assert "| 5x6x7x8 |" not in text
    assert "Not published, because the peak moved by more than 3 %: 5x6x7x8 on 2 threads.\n" in text


def test_a_table_without_any_row_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = with_peaks(measured(selfattn=0.01), 100.0, 80.0)
    with pytest.raises(SystemExit):
        run(tmp_path, document(moved), README, "--leave-out")
    assert "operator: no row can be published" in capsys.readouterr().err


def test_a_backward_pass_beside_a_dip_is_withheld(tmp_path: Path) -> None:
    """203.7 of 203.3 GFLOP/s was once published as 100 % of the peak."""
    row = {"what": "full", "threads": 2, "gflops": 203.0, "backward_gflops": 203.7}
    dip = row | {"shape": "1x8x2048x64", "backward_of_peak": 203.7 / 203.3}
    rows = [dip, row | {"shape": "1x12x512x64", "backward_of_peak": 203.7 / 230.9}]
    text = run(tmp_path, of_script("gradients", rows), readme_for("gradients"), "--leave-out")
    assert "100 %" not in text
    assert "moved by more than 3 %: full 1x8x2048x64 on 2 threads." in text


# ---- README's summary ----


def summary(tmp_path: Path, *operators: dict[str, Any]) -> str:
    encoders = []
    for shape in table.SUMMARY["encoder"]:
        row = measured(shape, selfattn=0.02, torch=0.03)
        encoders.append(report.compare(row | {"kind": "encoder"}))
    files = {"operator.json": document(*operators), "encoder.json": document(*encoders)}
    for name, contents in files.items():
        (tmp_path / name).write_text(json.dumps(contents))
    page = tmp_path / "page.md"
    kinds = ("summary", "operator", "encoder")
    page.write_text("\n".join(f"<!-- bench:{kind} -->\n<!-- /bench -->" for kind in kinds))
    assert table.main([*(str(tmp_path / name) for name in files), "--pages", str(page), "--leave-out"]) == 0
    return page.read_text().partition("<!-- /bench -->")[0]


def test_the_summary(tmp_path: Path) -> None:
    shapes = [*table.SUMMARY["operator"], "32x12x32x32"]
    rows = [measured(shape, n, selfattn=0.02, torch=0.03) for n in (1, 2) for shape in shapes]
    text = summary(tmp_path, *rows)
    assert len(re.findall("^[|] (operator|encoder) ", text, re.MULTILINE)) == 5
    assert "| operator 8x12x128x64 | 50.0 GFLOP/s | 33.3 GFLOP/s (torch) | 1.50 |" in text
    assert "| encoder ragged256 | 20.00 ms | 30.00 ms (torch) | 1.50 |" in text
    assert "A Processor (avx2), 2026-11-24, commit 0123456789ab. `selfattn bench operator " in text
    assert " and `selfattn bench encoder " in text


def test_a_row_that_the_summary_lacks_is_named(tmp_path: Path) -> None:
    first, second = (measured(shape, selfattn=0.02, torch=0.03) for shape in table.SUMMARY["operator"])
    text = summary(tmp_path, with_peaks(first, 100.0, 80.0), second)
    assert "Not published: operator 8x12x128x64." in text
    assert "| operator 8x12x128x64 |" not in text


# ---- what is published agrees with itself ----


def cells(text: str) -> Iterator[dict[str, str]]:
    """The rows of a table, each as its cells by the words above them."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield dict(zip(lines[0], line, strict=True))


def published(kind: str) -> str:
    page = table.PAGES[0] if kind == "summary" else table.PAGES[1]
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- bench:{kind} -->\n(.*?)\n<!-- /bench -->", text, re.DOTALL)
    return str(found)


def first_number(cell: str) -> float:
    return float(re.match(r"[\d.]+", cell)[0])  # type: ignore[index]


RATE = ("selfattn, GFLOP/s", "backward, GFLOP/s", "GFLOP/s", "selfattn")  # the first that a table has
DIVIDED = {"decode": ("read bandwidth, GB/s", "of bandwidth")}
WITH_PEAK = (*SPEEDS, "gradients", "sizes", "growth")


@pytest.mark.parametrize("kind", WITH_PEAK)
def test_a_printed_percentage_is_the_quotient_of_printed_numbers(kind: str) -> None:
    divisor, quotient = DIVIDED.get(kind, ("peak, GFLOP/s", "of peak"))
    rows = [row for row in cells(published(kind)) if row[quotient].strip()]
    assert rows
    for row in rows:
        rate = next(row[name] for name in RATE if name in row)
        assert row[quotient] == f"{first_number(rate) / float(row[divisor]):.0%}".replace("%", " %"), row


@pytest.mark.parametrize("kind", SPEEDS)
def test_a_printed_row_is_that_of_the_file(kind: str) -> None:
    results = json.loads((ROOT / "bench" / "results" / f"{kind}.json").read_text())["results"]
    of_place = {(report.label(row), str(row["threads"])): row for row in results}
    for printed in cells(published(kind)):
        row = of_place[printed["shape"], printed["threads"]]
        limit = report.limit_of(row)
        rate = row[limit.work] / statistics.median(row["contenders"]["selfattn"]["round_seconds"]) / 1e9
        divisor, quotient = DIVIDED.get(kind, ("peak, GFLOP/s", "of peak"))
        assert float(printed[divisor]) == pytest.approx(max(row[limit.measured]), abs=0.0501)
        assert first_number(printed[quotient]) == pytest.approx(
            100 * rate / max(row[limit.measured]), abs=0.75
        )
        low, high = (float(x) for x in table.report.np.percentile(row[limit.measured], (25, 75)))
        assert low >= 0.97 * high


@pytest.mark.parametrize("kind", SPEEDS)
def test_a_printed_ratio_is_that_of_the_printed_times(kind: str) -> None:
    for row in cells(published(kind)):
        ratio = row["best peer's time / ours"]
        if ratio == "-":
            continue
        peer = re.search(r"\((\w+)\)", ratio)[1]  # type: ignore[index]
        ours, theirs = first_number(row["selfattn"]), first_number(row[peer])
        quotient = theirs / ours if kind.startswith("encoder") else ours / theirs
        digits = 0.5 if theirs >= 100 and kind.startswith("encoder") else 0.05
        slack = 0.005 + quotient * (digits / ours + digits / theirs)
        assert first_number(ratio) == pytest.approx(quotient, abs=slack), row


def test_what_is_printed_comes_from_the_files() -> None:
    tables = table.all_tables(RESULTS, leave_out=True)
    del tables["summary"]
    for kind, text in tables.items():
        assert published(kind) == text, kind


@pytest.mark.parametrize("kind", [*WITH_PEAK, "masks", "isa", "threads", "soak", "footprint"])
def test_nothing_is_left_for_the_author(kind: str) -> None:
    assert not re.search(r"run it again|measured again|thread\(s\)|at least", published(kind))


def test_the_page_of_benchmarks_has_every_marker_once() -> None:
    text = table.PAGES[1].read_text(encoding="utf-8")
    for kind in (*SPEEDS, *table.TABLES):
        assert table.replace([text], kind, "new") != [text]


def test_readme_has_the_summary_alone() -> None:
    text = table.PAGES[0].read_text(encoding="utf-8")
    assert re.findall("<!-- bench:(.*) -->", text) == ["summary"]
    assert published("summary") == table.all_tables(RESULTS, leave_out=True)["summary"]
