# SPDX-License-Identifier: Apache-2.0
"""The developers' scripts of bench/ in the smallest size: masks, gradients, the comparison of commits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfattn

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import compare  # noqa: E402
import compare_calls  # noqa: E402
import gradients  # noqa: E402
import masks  # noqa: E402

from selfattn.bench import timing  # noqa: E402

SITE = Path(selfattn.__file__).parent.parent


# ---- masks ----


def test_a_mask_is_verified_and_timed_beside_the_plain_call() -> None:
    case = masks.Case("causal", (1, 2, 16, 8), {"causal": True})
    result = masks.ratio(case, threads=1, rounds=3, min_time=1e-4)
    assert (result["name"], result["shape"]) == ("causal", "1x2x16x8")
    low, high = result["quartiles"]
    assert 0 < low <= result["ratio"] <= high
    assert len(result["peak_gflops"]) == 3


def test_a_mask_that_does_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = selfattn.attention
    monkeypatch.setattr(selfattn, "attention", lambda *x, causal, **how: attention(*x, **how))
    with pytest.raises(timing.WrongResultError, match="causal: error"):
        masks.verify(masks.Case("causal", (1, 2, 16, 8), {"causal": True}), 1)


def test_every_case_of_masks_names_itself() -> None:
    cases = masks.cases()
    assert len({(case.name, case.shape) for case in cases}) == len(cases) > 10


# ---- gradients ----


def test_gradients_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "HAS_TORCH", False)
    result = gradients.operator_result((1, 2, 16, 8), True, 1, 2, 1e-4)
    assert (result["what"], result["shape"], result["threads"]) == ("causal", "1x2x16x8", 1)
    assert result["gflops"] > 0 < result["backward_gflops"]
    of_peak = result["backward_gflops"] / max(result["peak_gflops"])
    assert result["backward_of_peak"] == pytest.approx(of_peak)  # of the best round, not of a dip
    assert "torch_over_ours" not in result
    assert gradients.shown(result).startswith("causal        1x2x16x8")


def test_gradients_that_differ_are_refused() -> None:
    right = [np.ones(4), np.ones(2)]
    gradients.verify(right, right)
    with pytest.raises(timing.WrongResultError, match=r"1\.0e-03 of the largest"):
        gradients.verify([np.ones(4), np.full(2, 1.001)], right)


def test_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "HAS_TORCH", False)
    sizes = {"LAYERS": 1, "WIDTH": 16, "HEADS": 2, "D_FF": 32, "BATCH": 2, "LENGTH": 8}
    for name, size in sizes.items():
        monkeypatch.setattr(gradients, name, size)
    result = gradients.step_result(1, 2, 1e-4)
    assert result["shape"] == "1 layers, 16 wide, 2x8"
    assert result["ms"] > 0
    assert len(result["peak_gflops"]) == 2


# ---- compare ----


def test_the_total_of_a_dump(tmp_path: Path) -> None:
    (tmp_path / "out.2").write_text("events: Ir\nfn=(1) x\n1 5\ntotals: 1234\n")
    assert compare.dump_total(tmp_path / "out.2") == 1234
    (tmp_path / "out.4").write_text("events: Ir\n")
    with pytest.raises(ValueError, match=r"out\.4 holds no totals"):
        compare.dump_total(tmp_path / "out.4")


def test_ratios_are_b_over_a() -> None:
    row = compare.compared("call", (100, 103), [(1.0, 2.0), (2.0, 4.0), (1.0, 3.0)])
    assert (row["instruction_ratio"], row["time_ratio"]) == (1.03, 2.0)
    assert row["milliseconds"] == [1000.0, 3000.0]
    assert "1.0300" in compare.shown(row)
    assert compare.grown([row], 1.02) == ["call"]
    assert compare.grown([row], 1.04) == []


def test_a_call_that_one_of_them_lacks_has_no_ratio() -> None:
    row = compare.compared("call", (100, None), [])
    assert row["instruction_ratio"] is None
    assert compare.shown(row).split() == ["call", "100", "-", "-", "-", "-", "-"]
    assert compare.grown([row], 1.0) == []
    assert compare.lost([row]) == ["call"]
    new = compare.compared("call", (None, 100), [])
    assert (compare.lost([new]), compare.grown([new], 1.0)) == ([], [])


def test_times_of_two_builds_in_turns() -> None:
    with compare.timer(SITE) as a, compare.timer(SITE) as b:
        pairs = compare.times((a, b), "attention-1x1x8x16", rounds=3, min_time=1e-4)
        assert compare.times((a, b), "no-such-call", 1, 1e-4) == []
    assert len(pairs) == 3
    assert all(seconds > 0 for pair in pairs for seconds in pair)


def test_the_order_alternates() -> None:
    asked: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def seconds(self, name: str, calls: int) -> float:
            asked.append(f"{self.name}{calls}")
            return 0.1

    timers: Any = (Recorder("A"), Recorder("B"))
    compare.times(timers, "call", rounds=2, min_time=1.0)
    assert asked == ["A1", "B1", "A10", "B10", "B10", "A10"]


def test_every_call_can_be_made() -> None:
    for name in compare_calls.CALLS:
        if name.startswith("cache-bfloat16"):
            pytest.importorskip("ml_dtypes")
        result = compare_calls.warm(name)()
        parts = result if isinstance(result, tuple) else (result,)
        assert all(np.isfinite(part.astype(float)).all() for part in parts)


def test_the_process_names_its_calls() -> None:
    command = [sys.executable, "-P", str(compare.CALLS), "names"]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=compare.environment(SITE)
    )
    assert output.stdout.split() == list(compare_calls.CALLS)


@pytest.mark.parametrize(("limit", "code"), [(1.02, 1), (1.1, 0)])
def test_instructions_that_grew_fail(
    limit: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = compare.compared("encoder", (100, 105), [(1.0, 1.0)])
    monkeypatch.setattr(compare.shutil, "which", lambda _: "valgrind")
    monkeypatch.setattr(compare, "run", lambda *_: "0a1b subject")
    wheel = tmp_path / "selfattn.whl"
    wheel.write_bytes(bytes(1_500_000))
    monkeypatch.setattr(compare, "build", lambda *_: compare.Build(SITE, wheel))
    monkeypatch.setattr(compare, "compare", lambda *_: [row])
    arguments = ["A", "B", "--fail-above", str(limit), "--json", str(tmp_path / "out.json")]
    assert compare.main(arguments) == code
    assert json.loads((tmp_path / "out.json").read_text())["calls"][0]["instruction_ratio"] == 1.05
    printed = capsys.readouterr().out
    assert "wheel, MB: A 1.500, B 1.500, B / A 1.000" in printed
    assert ("encoder: instructions grew" in printed) == bool(code)


def test_without_valgrind_there_are_times_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit) as stopped:
        compare.main(["A", "B"])
    assert stopped.value.code == 2
    assert "--times-only does without" in capsys.readouterr().err
    options = compare.parse(
        ["A", "B", "--times-only", "--calls", "1x1x8x16", "--rounds", "2", "--min-time", "1e-4"]
    )
    rows = compare.compare([SITE, SITE], options)
    assert [row["call"] for row in rows] == ["attention-1x1x8x16", "import selfattn"]
    assert all(row["time_ratio"] > 0 for row in rows)
    assert compare.grown(rows, 1.01) == compare.lost(rows) == []


def test_one_percent_of_instructions_is_the_limit() -> None:
    assert compare.parse(["A", "B", "--times-only"]).fail_above == 1.01


def test_a_build_that_is_there_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "selfattn-1.whl").touch()
    (tmp_path / "finished").touch()
    monkeypatch.setattr(compare, "run", lambda *_: pytest.fail("this builds"))
    assert compare.build("0a1b", tmp_path).wheel.name == "selfattn-1.whl"


def test_what_grew_is_counted_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(
        [{"x": 100.0, "y": 100.0}, {"x": 103.0, "y": 100.0, "new": 9.0}, {"x": 101.0}, {"x": 100.5}]
    )
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(compare, "instructions", lambda _, *names: asked.append(names) or next(answers))
    counts = compare.counted([SITE, SITE], ["x", "y", "new"], 1.01)
    assert counts == [{"x": 100.0, "y": 100.0}, {"x": 100.5, "y": 100.0, "new": 9.0}]
    assert asked == [("x", "y", "new")] * 2 + [("x",)] * 2


def test_the_calls_use_public_names_alone() -> None:
    text = compare.CALLS.read_text()
    assert "selfattn._" not in text
    assert "from selfattn" not in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_the_instructions_of_each_call_are_counted_by_themselves() -> None:
    small, full, causal = "attention-1x1x8x16", "attention-1x1x512x64", "causal-1x1x512x64"
    counts = compare.instructions(SITE, small, full, "no-such-call", causal)
    assert list(counts) == [small, full, causal]
    assert counts[small] < 500_000  # nothing of the imports
    assert 0.5 < counts[causal] / counts[full] < 0.65
