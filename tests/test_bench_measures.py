"""bench/threads.py, growth.py, soak.py and footprint.py in the smallest size."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from selfattn.bench import machine, memory

BENCH = Path(__file__).resolve().parent.parent / "bench"


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
soak = script("soak")
footprint = script("footprint")

SMALL = "1x2x16x8"


@pytest.fixture(autouse=True)
def _quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peak_gflops", "read_bandwidth"):
        monkeypatch.setattr(machine, name, lambda threads: 100.0 * threads)


# ---- threads ----


@pytest.mark.parametrize("part", ["scaling", "after", "callers"])
def test_a_part_has_a_row_for_each_case(part: str) -> None:
    measure, _ = threads.PARTS[part]
    rows = list(measure([SMALL], 2, 2, 1e-3))
    assert {row["part"] for row in rows} == {part}
    for row in rows:
        assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
        assert f"{row['ratio']:.2f}" in threads.shown(row)


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
    assert threads.shown(row).endswith("0.80 ±0.10  at least 0.90  BELOW")
    assert "BELOW" not in threads.shown(row | {"bar": 0.8})


# ---- growth ----


def test_growth_beside_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "extra_megabytes", lambda shape, threads: 0.25)
    options = argparse.Namespace(threads=1, rounds=2, min_time=1e-3)
    row = growth.measured("length", 1, 64, options)
    assert row["model_ns"] == pytest.approx(4 * 64 * 64 / 100)
    assert row["ns"] > 0
    assert row["mib"] == 0.25
    assert growth.shown(row).split()[:2] == ["1", "64"]


def test_growth_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"axis": axis, "batch": size, "length": size, "ns": 2.0 * size, "model_ns": 1.0 * size, "mib": 0.2}
        for axis in ("length", "batch")
        for size in (64, 2048)
    ]
    facts = {"cpu": "", "isa": "", "date": "", "commit": None, "versions": {}}
    growth.draw(rows, facts, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_memory_of_a_call_is_not_that_of_its_parent() -> None:
    held = np.ones(30_000_000)  # 230 MiB here, which the new process must not count
    assert -0.1 < memory.extra_megabytes((1, 256, 64), 1) < 4
    assert held[0] == 1


# ---- soak ----


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
def test_resident_memory_while_it_embeds(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    import tiny_models

    measured = soak.soak(tiny_models.build(tmp_path), count=12, most=3, threads=1)
    assert [done for done, _ in measured["looks"]] == list(range(1, 13))
    table: dict[str, Any] = {name: (value, most) for name, value, most in soak.figures(measured)}
    assert table["after 12 batches"][0] > 10
    assert table["the most of all above the weights"][1] == soak.ABOVE_WEIGHTS
    assert json.dumps(measured)


def test_batches_are_small_and_large_and_always_the_same() -> None:
    texts = [str(number) for number in range(50)]
    sizes = [len(batch) for batch in soak.batches(texts, 300, 8)]
    assert set(sizes) == set(range(1, 9))
    assert [*soak.batches(texts, 5, 8)] == [*soak.batches(texts, 5, 8)]


# ---- footprint ----


def test_a_call_above_its_work() -> None:
    overhead = footprint.call_microseconds(rounds=3)
    assert list(overhead) == ["call", "with out="]
    assert all(0.1 < value < 1000 for value in overhead.values())


def test_a_new_process_embeds(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    import tiny_models

    assert 0.02 < footprint.first_embedding_seconds(tiny_models.build(tmp_path), repeats=1) < 60
