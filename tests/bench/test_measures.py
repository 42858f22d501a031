# SPDX-License-Identifier: Apache-2.0
"""bench/threads.py, growth.py, sizes.py, isa.py, soak.py and footprint.py in the smallest size."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import selfattn
from selfattn.bench import machine, memory, timing

BENCH = Path(__file__).resolve().parents[2] / "bench"


def script(name: str) -> ModuleType:
    """By its path: `threads` and `plot` are the names of other modules too."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


threads = script("threads")
growth = script("growth")
sizes = script("sizes")
isa = script("isa")
soak = script("soak")
resident = script("resident")
footprint = script("footprint")

SMALL = "1x2x16x8"


@pytest.fixture(autouse=True)
def _quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peak_gflops", "read_bandwidth"):
        monkeypatch.setattr(machine, name, lambda threads, seconds=0.1: 100.0 * threads)
    monkeypatch.setattr(machine, "multiply_adds", lambda threads: lambda: 100e9 * threads)
    monkeypatch.setattr(machine, "pace", lambda work: 1.0)


# ---- threads ----


@pytest.mark.parametrize("part", ["scaling", "after", "callers"])
def test_a_part_has_a_row_for_each_case(part: str) -> None:
    measure, _ = threads.PARTS[part]
    rows = list(measure([SMALL], 2, 2, 1e-3))
    assert {row["part"] for row in rows} == {part}
    for row in rows:
        assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
        assert f"{row['ratio']:.2f}" in threads.shown(row)
    assert len(rows[-1]["peak_gflops"]) == 2  # of every round


def test_the_limits_come_first() -> None:
    peak, read, ours = threads.scaling([SMALL], 2, 2, 1e-3)
    assert (peak["case"], read["case"], ours["case"]) == ("FMA peak", "read bandwidth", SMALL)
    assert (peak["ratio"], peak["bar"]) == (2.0, None)
    assert ours["bar"] == 1.0  # so short a call is only not to be slower


def test_long_work_is_to_gain() -> None:
    assert threads.least_speed_up(2e-3, 2) == 1.85
    assert threads.least_speed_up(2e-3, 4) == 3.7
    assert threads.least_speed_up(1e-4, 4) == 1.0


def test_calls_of_every_caller_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.timing, "wait_until_idle", lambda: None)
    counted: list[int] = []
    calls = [lambda: counted.append(1), lambda: counted.append(1)]
    assert threads.calls_per_second(calls, 0.005) > 0
    assert len(counted) >= 2


def test_turns_one_by_one() -> None:
    order: list[str] = []
    seconds = threads.alternating([lambda: order.append("a"), lambda: order.append("b")], 1e-4)
    assert "".join(order[:6]) == "ababab"
    assert len(seconds) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="processors are chosen as on Linux")
def test_on_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TURNS", 1)
    one, many = threads.confined(SMALL, 2, 2, 0.01)
    assert len(one) == len(many) == 2
    assert min(*one, *many) > 0


def test_a_row_below_its_bar_says_so() -> None:
    row = threads.row("scaling", "1x1", {"ms, 1 thread": 2.0}, [0.7, 0.8, 0.9], 0.9)
    assert row["ratio"] == 0.8
    assert threads.shown(row).endswith("0.80 ±0.05  at least 0.90  BELOW")
    assert "BELOW" not in threads.shown(row | {"bar": 0.8})


# ---- growth ----


def test_growth_beside_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "one_call", lambda shape, threads: (0.25, 8.0))
    monkeypatch.setattr(timing, "in_turns", lambda *_: {"attention": [64e-6] * 3, "limit": [0.6, 0.9, 0.5]})
    options, watch = argparse.Namespace(threads=1, rounds=3, min_time=1e-3), timing.Watch(lambda: 1.0)
    row = growth.measured("length", 1, 64, options, watch)
    assert row["peak_gflops"] == pytest.approx([100 / 0.6, 100 / 0.9, 200])
    assert row["model_ns"] == pytest.approx(4 * 64 * 64 / 200)  # half a second, one at 100 GFLOP/s
    assert row["ns"] == pytest.approx(1000)
    assert row["mib"] == 0.25
    assert growth.shown(row).split()[:2] == ["1", "64"]


def test_what_takes_seconds_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "one_call", lambda shape, threads: (0.25, 8.0))
    monkeypatch.setattr(growth, "repeated", lambda *_: pytest.fail("it is timed where its memory is"))
    options, watch = argparse.Namespace(threads=1, rounds=2, min_time=1e-3), timing.Watch(lambda: 1.0)
    monkeypatch.setattr(machine, "pace", lambda work: 100.0)
    row = growth.measured("length", 1, 65536, options, watch)
    assert row["peak_gflops"] == [100.0, 100.0]
    assert row["ns"] == pytest.approx(8e9 / 65536)


# ---- sizes ----


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LENGTH", 16)


@pytest.mark.parametrize("layout", sizes.LAYOUTS)
def test_a_layout_is_verified_and_timed_beside_its_neighbour(layout: str, short: None) -> None:
    case = sizes.Case(40, 64, layout, heads=2)
    row = sizes.result(case, 1, 2, 1e-4, timing.Watch(lambda: 1.0))
    assert (row["head_dim"], row["value_dim"], row["layout"], row["neighbour"]) == (40, 64, layout, 64)
    low, high = row["quartiles"]
    assert 0 < low <= row["ratio"] <= high
    assert f"{row['ratio']:.2f}" in sizes.shown(row)


def test_a_multiple_of_16_is_its_own_neighbour(short: None) -> None:
    row = sizes.result(sizes.Case(32, 32), 1, 2, 1e-4, timing.Watch(lambda: 1.0))
    assert row["of_peak"] > 0
    assert len(row["peak_gflops"]) == 2
    assert "ratio" not in row
    assert sizes.Case(100, 100, sizes.WIDE, 3).neighbour == sizes.Case(112, 112, heads=3)
    assert sizes.Case(128, 64).neighbour == sizes.Case(96, 96)


def test_layouts_lie_as_they_say() -> None:
    rng = np.random.default_rng(0)
    heads = {sizes.INSIDE: 12, sizes.MODEL: 16}
    strides = {
        layout: sizes.array(sizes.Case(64, 64, layout, heads.get(layout, 2)), 64, rng).strides[1:]
        for layout in sizes.LAYOUTS
    }
    assert strides == {
        sizes.CONTIGUOUS: (512 * 256, 256, 4),
        sizes.INSIDE: (256, 12 * 256, 4),
        sizes.MODEL: (256, 4096, 4),
        sizes.WIDE: (512 * 4096, 4096, 4),
    }


def test_a_size_that_comes_out_wrong_is_refused(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(selfattn, "attention", lambda query, key, value, out, num_threads: value + 1)
    with pytest.raises(timing.WrongResultError, match=r"Case\(head_dim=16"):
        sizes.call_of(sizes.Case(16, 16), 1)


# ---- isa ----


@pytest.fixture
def two_isas() -> Iterator[tuple[str, ...]]:
    names = selfattn.available_isas()
    before = selfattn.active_isa()
    yield (names[0], names[-1])
    isa._runtime.use_isa(before)


def test_a_call_runs_on_its_instruction_set(two_isas: tuple[str, ...]) -> None:
    for name in two_isas:
        assert isa.on(name, selfattn.active_isa)() == name


def test_instruction_sets_take_turns(two_isas: tuple[str, ...]) -> None:
    calls = isa.calls_of(SMALL, 1, two_isas)
    first, last = (np.array(call()) for call in calls.values())
    np.testing.assert_allclose(first, last, atol=1e-5)
    watch = timing.Watch(lambda: 1.0)
    row = isa.measured(SMALL, 1, two_isas, None, argparse.Namespace(rounds=3, min_time=1e-4), watch)
    assert (list(row["ms"]), len(row["peak_gflops"]), row["repeated"]) == ([*two_isas], 3, 0)
    assert isa.peaks(two_isas, 1, 3, watch) == dict.fromkeys(two_isas, 100.0)


def test_the_second_instruction_set_below_its_bar_says_so() -> None:
    row = isa.row("1x2x3x4", 2, {"fast": [2e-3, 2e-3, 2e-3], "slow": [4e-3, 4e-3, 5e-3]}, 0.95)
    assert row["ms"] == {"fast": 2.0, "slow": 4.0}
    assert isa.shown(row).endswith("0.50 ±0.02  at least 0.95  BELOW")
    assert "at least" not in isa.shown(row | {"bar": None})


def test_the_memory_of_a_call_is_not_that_of_its_parent() -> None:
    held = np.ones(30_000_000)  # 230 MiB here, which the new process must not count
    assert -0.1 < memory.extra_megabytes((1, 256, 64), 1) < 4
    assert held[0] == 1


# ---- soak ----


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
def test_resident_memory_while_it_embeds(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from support import tiny_models

    measured = soak.soak(tiny_models.build(tmp_path), count=12, most=3, threads=1)
    assert [done for done, _ in measured["looks"]] == list(range(1, 13))
    table: dict[str, Any] = {name: (value, most) for name, value, most in soak.figures(measured)}
    assert table["after 12 batches"][0] > 10
    assert table["the most of all above the weights"][1] == soak.ABOVE_WEIGHTS
    assert json.dumps(measured)


def test_the_process_that_embeds_has_nothing_of_the_benchmark() -> None:
    code = "import sys, resident; print(any('bench' in name or name == 'statistics' for name in sys.modules))"
    path = os.pathsep.join([str(Path(resident.__file__).parent), *sys.path])
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert found.stdout.strip() == "False"


def test_batches_are_small_and_large_and_always_the_same() -> None:
    texts = [str(number) for number in range(50)]
    sizes = [len(batch) for batch in resident.batches(texts, 300, 8)]
    assert set(sizes) == set(range(1, 9))
    assert [*resident.batches(texts, 5, 8)] == [*resident.batches(texts, 5, 8)]


# ---- footprint ----


def test_a_call_above_its_work() -> None:
    overhead = footprint.call_microseconds(rounds=3)
    assert list(overhead) == ["call", "with out="]
    assert all(0.1 < value < 1000 for value in overhead.values())


def test_a_new_process_embeds(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from support import tiny_models

    assert 0.02 < footprint.first_embedding_seconds(tiny_models.build(tmp_path), repeats=1) < 60
