# SPDX-License-Identifier: Apache-2.0
"""The benchmark frame itself: what it refuses, what it computes, in which order it measures."""

from pathlib import Path
from shutil import which
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from selfattn._native import runtime as _runtime
from selfattn.bench import machine, options, peers, report, run, timing, workloads


def workload(tolerance: float = 1e-5) -> Any:
    return SimpleNamespace(tolerance=tolerance, error=lambda result: workloads.max_error(result, np.ones(3)))


def variants(**results: Any) -> dict[str, Any]:
    return {name: lambda result=result: lambda: result for name, result in results.items()}


@pytest.mark.parametrize(
    "wrong", [np.ones(3) + 1e-3, np.array([1, np.nan, 1]), np.ones(4), np.ones((1, 3))], ids=str
)
def test_a_wrong_result_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(timing.WrongResultError, match=r"bad: .* above the tolerance 1\.0e-05"):
        timing.choose(variants(bad=wrong), workload(), 1e-4)


def test_a_faster_variant_that_is_wrong_does_not_represent_its_library() -> None:
    choice = timing.choose(variants(bad=np.zeros(3), good=np.ones(3)), workload(), 1e-4)
    assert choice.variant == "good"
    assert choice.error == 0
    assert list(choice.rejected) == ["bad"]


def test_the_fastest_variant_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {name: lambda: np.ones(3) for name in ("slow", "fast", "middle")}
    cost = dict(zip(map(id, built.values()), (3.0, 1.0, 2.0), strict=True))
    monkeypatch.setattr(timing, "rough_seconds", lambda call, _: cost[id(call)])
    chosen = timing.choose({name: lambda call=call: call for name, call in built.items()}, workload(), 1e-4)
    assert (chosen.variant, chosen.seconds) == ("fast", 1.0)


def test_a_variant_that_a_library_lacks_is_passed_over() -> None:
    def missing() -> Any:
        raise RuntimeError("no such operator")

    choice = timing.choose({"new": missing, **variants(old=np.ones(3))}, workload(), 1e-4)
    assert choice.variant == "old"
    assert choice.rejected == {"new": "RuntimeError: no such operator"}


def test_everybody_takes_every_place() -> None:
    orders = list(timing.rotations("ABC", 4))
    assert ["".join(order) for order in orders] == ["ABC", "BCA", "CAB", "ABC"]


def test_interleaved_turns_are_batches_after_a_warm_up() -> None:
    calls: list[str] = []
    choices = {
        name: timing.Choice("", lambda name=name: calls.append(name), 0.0, seconds, {})
        for name, seconds in {"A": 1.0, "B": 0.4}.items()
    }
    seconds = timing.interleave(choices, rounds=2, min_time=1.0)
    assert "".join(calls) == "A" + "BBBB" + "BBBB" + "A"  # A is long enough without a warm-up
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"A": 2, "B": 2}


def test_seconds_are_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 16.0))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.timed(lambda: None, 3) == 2.0


def watch_of(*speeds: float, **options: Any) -> timing.Watch:
    return timing.Watch(iter(speeds).__next__, **options)


def test_what_is_measured_at_full_speed_counts() -> None:
    watch = watch_of(90, 100, 76, 95)
    assert [watch.undisturbed(iter("ab").__next__) for _ in range(2)] == ["a", "a"]
    assert (watch.best, watch.counts()) == (100, {"repeated": 0, "slow": 0})


def test_a_round_that_the_machine_slowed_down_is_measured_again() -> None:
    watch = watch_of(100, 50, 50, 50, 98, 99)  # it waits before it begins again
    assert watch.undisturbed(iter(["slow", "fast"]).__next__) == "fast"
    assert watch.counts() == {"repeated": 1, "slow": 0}
    assert watch.counts() == {"repeated": 0, "slow": 0}


def test_a_round_counts_after_all_when_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "wait_until_idle", lambda: None)
    monkeypatch.setattr(timing.time, "perf_counter", iter(range(0, 900, 10)).__next__)
    watch = watch_of(100, *[50] * 9, patience=25)  # ten seconds are lost at each look
    assert watch.undisturbed(iter(["first", "last"]).__next__) == "last"
    assert watch.counts() == {"repeated": 1, "slow": 1}
    assert watch.undisturbed(lambda: "at once") == "at once"
    assert watch.counts() == {"repeated": 0, "slow": 1}


def test_the_speed_is_measured_when_no_worker_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "wait_until_idle", lambda: order.append("idle"))
    watch = timing.Watch(lambda: order.append("speed") or 1.0)
    watch.undisturbed(lambda: order.append("round"))
    assert order == ["idle", "speed", "round", "idle", "speed"]


def test_no_patience_measures_once() -> None:
    watch = watch_of(100, 50, patience=0)
    assert watch.undisturbed(iter("ab").__next__) == "a"
    assert watch.counts() == {"repeated": 0, "slow": 1}


def test_every_contender_is_measured_again_in_a_round_that_is() -> None:
    calls: list[str] = []
    choices = {
        name: timing.Choice("", lambda name=name: calls.append(name), 0.0, 1.0, {}) for name in ("A", "B")
    }
    watch = watch_of(1, 1, 1, 0.5, 1, 1)
    seconds = timing.interleave(choices, rounds=2, min_time=1.0, watch=watch)
    assert "".join(calls) == "AB" + "BA" + "BA"
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"A": 2, "B": 2}


def test_the_pace_counts_all_threads_and_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 14.0))
    monkeypatch.setattr("selfattn._native.runtime.multiply_add", lambda precision: 100e9)
    work = machine.multiply_adds(2, rounds=6)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    assert machine.pace(work) == 2 * 6 * 100 / 4


def test_every_thread_reads_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(machine, "READ_BYTES", 4096)
    monkeypatch.setattr("selfattn._native.runtime.read_all", lambda piece: read.append(piece) or piece.nbytes)
    assert machine.reads(2)() == 2 * 4096
    assert not np.shares_memory(*read)


def test_the_yardsticks_say_how_much_they_did() -> None:
    assert _runtime.read_all(np.ones(1000, np.float32)) == 4000
    assert _runtime.multiply_add(None, 200) == 2 * _runtime.multiply_add(None, 100) > 0


def test_footnotes_say_what_was_measured_again() -> None:
    row = result(selfattn=1.0) | {"repeated": 3, "slow": 1}
    notes = [note for note in report.footnotes([row]) if "measured" in note]
    assert notes == [
        "1x12x128x64 on 1 thread: 3 rounds measured again, because the machine gave less than it can",
        "1x12x128x64 on 1 thread: 1 rounds measured although the machine gave less than it can",
    ]


def test_median_and_spread() -> None:
    summary = timing.summarize([4.0, 1.0, 2.0, 3.0, 5.0])
    assert summary["median_seconds"] == 3.0
    assert summary["quartile_seconds"] == [2.0, 4.0]
    assert summary["spread"] == pytest.approx(2 / 3)


def result(**median_seconds: float) -> dict[str, Any]:
    return report.compare(
        {
            "kind": "operator",
            "shape": "1x12x128x64",
            "threads": 1,
            "flops": 50e9,
            "peak_gflops": [99.0, 100.0],
            "contenders": {
                name: {"median_seconds": s, "spread": 0.1, "round_seconds": [0.9 * s, s, 1.2 * s]}
                for name, s in median_seconds.items()
            },
            "absent": {"openvino": "No module named 'openvino'"},
            "refused": {"numpy": "error 1"},
        }
    )


def decode_result() -> dict[str, Any]:
    return report.compare(
        {
            "kind": "decode",
            "shape": "1x32x8x4096x128",
            "queries": 2,
            "dtype": "int8",
            "threads": 1,
            "flops": 1e9,
            "bytes": 10e9,
            "read_gigabytes_per_second": [20.0, 25.0],
            "contenders": {"selfattn": {"median_seconds": 0.5, "spread": 0.1, "round_seconds": [0.5, 0.5]}},
            "absent": {},
            "refused": {},
        }
    )


def test_decode_is_measured_by_the_bytes_it_reads() -> None:
    row = decode_result()
    assert row["contenders"]["selfattn"]["gigabytes_per_second"] == pytest.approx(20)
    assert row["contenders"]["selfattn"]["fraction_of_read_bandwidth"] == pytest.approx(0.8)
    line = report.row(row, ["selfattn", "torch"])
    unsteady = "read bandwidth 21.2 to 23.8 GB/s: not publishable"
    assert (
        " ".join(line.split()) == f"1x32x8x4096x128 q2 int8 20.0 ±5 % - 25.0 0.80 - {unsteady}"
    )  # no torch for int8
    assert "GB/s" in report.header("decode", 1, ["selfattn"])
    assert report.footnotes([row]) == [f"1x32x8x4096x128 q2 int8 on 1 thread: {unsteady}"]


def test_the_limit_of_bfloat16_is_the_peak_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "peak_gflops", lambda threads, bfloat16: (100.0 + 150 * bfloat16) * threads)
    monkeypatch.setattr(machine, "read_bandwidth", lambda threads: 20.0)
    facts: dict[str, Any] = {"machine": {}}
    values = "FMA peak 200.0 GFLOP/s, bfloat16 peak 500.0 GFLOP/s, read bandwidth 20.0 GB/s"
    assert run.limits(facts, 2, "bfloat16") == f"2 threads, at best moments: {values}"
    assert facts["machine"]["limits"]["2"]["bfloat16_peak_gflops"] == 500
    assert "bfloat16" not in run.limits({"machine": {}}, 2, "float32")
    row = report.compare(result(selfattn=1.0) | {"precision": "bfloat16", "bfloat16_peak_gflops": [250, 200]})
    assert row["contenders"]["selfattn"]["fraction_of_peak"] == pytest.approx(50 / 250)
    assert "bfloat16 peak 212.5 to 237.5 GFLOP/s: not publishable" in "\n".join(report.footnotes([row]))
    assert "operator, bfloat16, 2 threads: GFLOP/s" in report.header("operator", 2, [], "bfloat16")


def test_the_peak_of_bfloat16_is_measured_on_this_processor() -> None:
    pairs = ([machine.peak_gflops(1, 0.01, bfloat16=which) for which in (True, False)] for _ in range(20))
    assert any(bfloat16 > 0.9 * fma for bfloat16, fma in pairs)  # of the two, another process may slow one


def test_table_arithmetic_shows_a_loss() -> None:
    row = result(selfattn=1.0, torch=2.0, onnxruntime=0.5)
    assert row["contenders"]["selfattn"]["gflops"] == pytest.approx(50)
    assert row["contenders"]["onnxruntime"]["fraction_of_peak"] == pytest.approx(1)
    assert (row["best_peer"], row["ratio_to_best_peer"]) == ("onnxruntime", 0.5)
    line = report.row(row, ["selfattn", "numpy", "torch", "onnxruntime", "openvino"])
    expected = "1x12x128x64 50.0 ±5 % WRONG 25.0 ±5 % 100.0 ±5 % absent 100.0 0.50 0.50 ±0.00 (onnxruntime)"
    assert line.split() == expected.split()


def test_columns_line_up() -> None:
    names = ["selfattn", "torch", "openvino"]
    first = report.header("operator", 2, names).splitlines()[-1]
    line = report.row(result(selfattn=1.0, torch=2.0), names)
    for name, text in {
        "torch": "25.0 ±5 %",
        "openvino": "absent",
        " peak": " 100.0",
        "of peak": "0.50",
    }.items():
        assert first.index(name) + len(name) == line.index(text) + len(text)


def test_without_peers_there_is_no_ratio() -> None:
    row = result(selfattn=1.0)
    assert "best_peer" not in row
    assert report.row(row, ["selfattn"]).endswith("-")


def test_footnotes_name_the_absent_the_wrong_and_the_unsteady() -> None:
    row = result(selfattn=1.0)
    row["peak_gflops"] = [100.0, 90.0]
    notes = "\n".join(report.footnotes([row, row]))
    assert notes.count("openvino is absent") == 1
    assert "numpy is WRONG: error 1" in notes
    assert "1x12x128x64 on 1 thread: FMA peak 92.5 to 97.5 GFLOP/s: not publishable" in notes


# ---- the rule: no row is published whose limit moved ----


def peaks(*rounds: float, threads: int = 1) -> dict[str, Any]:
    return {"peak_gflops": list(rounds), "threads": threads}


def test_a_limit_that_moved_between_its_quartiles() -> None:
    assert report.moved(peaks(100, 99, 98, 97.1)) is None
    cause = report.moved(peaks(100, 100, 90, 90))
    assert cause == (report.PEAK, 90, 100)
    assert str(cause) == "FMA peak 90.0 to 100.0 GFLOP/s"


def test_one_round_of_many_does_not_move_the_limit() -> None:
    assert report.moved(peaks(100, 100, 100, 60, 100, 100, 100)) is None


@pytest.mark.parametrize(("rounds", "withheld"), [((97.0, 97.0), False), ((96.9, 96.9), True)])
def test_the_limit_is_3_percent(rounds: tuple[float, ...], withheld: bool) -> None:
    assert (report.moved(peaks(*rounds), best=100) is not None) == withheld
    assert (report.moved(peaks(rounds[0], rounds[0], 100, 100)) is not None) == (rounds[0] < 97)


def test_a_limit_that_is_low_in_every_round_of_a_row() -> None:
    rows = [peaks(231, 230), peaks(204, 203), peaks(118, 118, threads=1) | {"threads": 4}, peaks(231, 180)]
    causes = report.withheld(rows)
    assert causes == [None, (report.PEAK, 203.5, 230.5), None, (report.PEAK, 192.75, 218.25)]


def test_a_limit_that_is_low_in_every_row() -> None:
    rows = [peaks(50, 50)]
    assert report.withheld(rows, {"1": {"peak_gflops": 55.0}}) == [None]
    assert report.withheld(rows, {"1": {"peak_gflops": 100.0}}) == [(report.PEAK, 50, 100)]
    unnamed = [{"peak_gflops": [50, 50]}]
    assert report.withheld(unnamed, {"2": {"peak_gflops": 100.0}}, threads=2) == [(report.PEAK, 50, 100)]


def test_a_row_without_a_limit_is_not_judged() -> None:
    assert report.withheld([{"ms": 1.0}], {"1": {"peak_gflops": 100.0}}) == [None]


def test_a_row_is_measured_until_its_limit_stands_still() -> None:
    attempts = iter([peaks(100, 80), peaks(100, 99), peaks(0, 0)])
    assert report.steadily(attempts.__next__) == peaks(100, 99) | {"attempts": 2}


def test_the_attempt_whose_limit_moved_least_counts_in_the_end() -> None:
    attempts = iter([peaks(100, 80), peaks(100, 90), peaks(100, 70)])
    row = report.steadily(attempts.__next__)
    assert row == peaks(100, 90) | {"attempts": 3}
    assert report.marks(row) == ["FMA peak 92.5 to 97.5 GFLOP/s: not publishable", "measured 3 times"]
    assert report.steadily(iter([peaks(9, 1)]).__next__, again=0)["attempts"] == 1


def test_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from selfattn.bench.plot import plot

    facts = {"cpu": "x", "isa": "avx2", "date": "2026-01-01", "commit": "0", "versions": {"numpy": "2"}}
    results = [result(selfattn=1.0), result(selfattn=1.0, torch=2.0), decode_result()]
    plot({"machine": facts, "results": results}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_ratio_has_the_spread_of_its_rounds() -> None:
    row = result(selfattn=1.0, torch=3.0)
    ours, torch = (row["contenders"][name] for name in ("selfattn", "torch"))
    ours["round_seconds"], torch["round_seconds"] = [1.0, 1.0, 2.0, 1.0, 1.0], [3.0, 2.0, 6.0, 4.0, 5.0]
    row = report.compare(row)
    assert row["ratio_quartiles"] == [3.0, 4.0]
    assert report.ratio(row) == "3.00 ±0.50 (torch)"


def test_a_file_without_the_spread_of_the_ratio_is_read_too() -> None:
    row = result(selfattn=1.0, torch=3.0)
    del row["ratio_quartiles"]
    assert report.ratio(row) == "3.00 (torch)"


def test_provenance_has_a_commit_only_where_there_is_one() -> None:
    facts = {"cpu": "x", "isa": "avx2", "date": "2026-01-01T00", "commit": None, "versions": {"numpy": "2"}}
    assert report.provenance(facts) == "x (avx2), 2026-01-01\nnumpy 2"
    assert "commit 0a1b" in report.provenance(facts | {"commit": "0a1b"})


def test_the_commit_is_of_our_repository_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": str(tmp_path), "describe": "0a1b", "status": ""}
    monkeypatch.setattr(machine, "git", lambda command, *_, cwd: answers[command])
    assert machine.git_commit() is None  # somebody else's repository, with our wheel in its .venv
    (tmp_path / "selfattn" / "bench").mkdir(parents=True)
    (tmp_path / "selfattn" / "bench" / "machine.py").touch()
    assert machine.git_commit() == "0a1b"


@pytest.mark.skipif(which("git") is None, reason="needs git")
def test_a_run_does_not_change_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make bench-tables` measures one thing after the other."""
    this = tmp_path / "selfattn" / "bench" / "machine.py"
    results = tmp_path / "bench" / "results" / "operator.json"
    for path in (this, results):
        path.parent.mkdir(parents=True)
        path.touch()
    as_us = ("-c", "user.name=selfattn", "-c", "user.email=selfattn@localhost")
    for command in (("init", "-q"), ("add", "."), (*as_us, "commit", "-q", "-m", "all")):
        assert machine.git(*command, cwd=tmp_path) is not None
    monkeypatch.setattr(machine, "__file__", str(this))
    clean = machine.git_commit()
    results.write_text("{}")
    assert machine.git_commit() == clean
    this.write_text("changed")
    assert machine.git_commit() == f"{clean}-dirty"


def test_limits_are_the_sum_over_threads_that_run_together() -> None:
    meet = Barrier(3, timeout=20)  # one that came alone would break it

    def measure() -> float:
        meet.wait()
        return 2.0

    assert machine.on_threads([measure] * 3) == 6.0


def test_a_row_has_a_place_for_the_right_the_absent_and_the_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    case = workloads.attention_workload("1x1x4x2")

    def absent(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'torch'")

    contenders = {
        "selfattn": lambda case, _: variants(attention=case.expected),
        "torch": absent,
        "numpy": lambda case, _: variants(matmul=case.expected + 1),
    }
    monkeypatch.setitem(run.CONTENDERS, "operator", contenders)
    monkeypatch.setattr(machine, "multiply_adds", lambda threads, bfloat16: lambda: 100.0 * threads)
    watch = timing.Watch(lambda: 1.0)
    row = run.measure(case, list(contenders), 2, SimpleNamespace(rounds=3, min_time=1e-4), watch)
    assert (row["repeated"], row["slow"]) == (0, 0)
    assert 1 <= row["attempts"] <= 1 + report.AGAIN
    assert len(row["peak_gflops"]) == 3
    assert list(row["contenders"]) == ["selfattn"]
    assert row["absent"] == {"torch": "No module named 'torch'"}
    assert row["refused"]["numpy"].endswith("error 1.0e+00 is above the tolerance 1.0e-05")


@pytest.mark.parametrize(("suite", "name"), [("operator", "numpy"), ("encoder", "onnxruntime")])
def test_who_has_no_bfloat16_is_absent(suite: str, name: str) -> None:
    case = SimpleNamespace(precision="bfloat16")
    with pytest.raises(peers.PrecisionError, match="it has no bfloat16 products"):
        run.CONTENDERS[suite][name](case, 1)


def test_attention_workload_counts_two_products_and_verifies_against_float64() -> None:
    case = workloads.attention_workload("2x3x5x4")
    assert case.flops == 2 * (2 * 2 * 3 * 5 * 5 * 4)
    assert case.expected.dtype == np.float64
    query, key, value = (array.astype(np.float64) for array in case.arrays)
    weights = np.exp(query @ key.swapaxes(-1, -2) / 2)
    right = weights @ value / weights.sum(-1, keepdims=True)
    assert case.error(right) < 1e-14
    assert case.error(right + 1e-3) > case.tolerance


def encoder_workload(*lengths: int, order: list[int], config: dict[str, int] | None = None) -> Any:
    sentences = [np.arange(1, length + 1) * 10**place for place, length in enumerate(lengths)]
    case = workloads.EncoderWorkload("ragged", Path(), sentences, order)
    vars(case)["config"] = config
    return case


def test_padded_batches_pack_back_into_the_order_of_the_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "PEER_BATCH", 2)
    case = encoder_workload(3, 1, 2, order=[1, 2, 0])
    (ids, mask), (last, _) = case.batches
    assert ids.tolist() == [[10, 0], [100, 200]]
    assert mask.tolist() == [[1, 0], [1, 1]]
    assert last.tolist() == [[1, 2, 3]]
    packed, cu_seqlens = case.packed
    assert packed.tolist() == [1, 2, 3, 10, 100, 200]
    assert cu_seqlens.tolist() == [0, 3, 4, 6]
    assert case.pack([ids[..., None], last[..., None]])[:, 0].tolist() == packed.tolist()


def test_encoder_flops_count_real_tokens() -> None:
    config = {"hidden_size": 2, "intermediate_size": 3, "num_hidden_layers": 5}
    case = encoder_workload(4, 1, order=[0, 1], config=config)
    qkv_and_output, feed_forward, attention = 4 * 2 * 2 * 2, 2 * 2 * 2 * 3, 4 * 2 * (16 + 1)
    assert case.flops == 5 * (5 * (qkv_and_output + feed_forward) + attention)


@pytest.mark.parametrize("shape", ["", "0", "1x2x3", "0x1x2x3", "1x2x3x4x5x6", "1x-2", "ragged", "ragged0"])
def test_a_bad_shape_is_an_error_that_says_what_a_shape_is(shape: str) -> None:
    with pytest.raises(ValueError, match="is none of BATCHxHEADSxLENGTHxHEAD_DIM"):
        options.suite_of(shape)


def test_the_form_of_a_shape_says_which_suite_it_is_for() -> None:
    for suite in options.SUITES:
        assert {options.suite_of(shape) for shape in (*run.SHAPES[suite], *run.SMOKE_SHAPES[suite])} == {
            suite
        }


def test_suites_and_contenders_go_by_the_same_names() -> None:
    assert tuple(run.CONTENDERS) == options.SUITES
    for contenders in run.CONTENDERS.values():
        assert set(contenders) <= set(report.CONTENDERS) == {report.OURS, *options.PEERS}
