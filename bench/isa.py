# SPDX-License-Identifier: Apache-2.0
"""The second-best instruction set against the best: `python bench/isa.py [--threads 1,2] [--json FILE]`.

Both in one process and in turns: the operator at the shapes of `selfattn bench`, and an encoder. On a
processor that reaches the same peak with either, the second is meant to be nearly as fast.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import selfattn
from selfattn._native import runtime as _runtime
from selfattn.bench import machine, options, report, timing, workloads
from selfattn.bench.run import CONTENDERS, SHAPES

BAR, SAME = 0.95, 0.95  # of the speed, where the peak is at least this part of the other
ENCODER = "8x256"

Row = dict[str, Any]
Calls = dict[str, Callable[[], Any]]


def on(isa: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call on that instruction set, which stays the active one: to look for it takes microseconds."""

    def switched() -> Any:
        if _runtime.active_isa() != isa:
            _runtime.use_isa(isa)
        return call()

    return switched


def calls_of(shape: str, threads: int, isas: tuple[str, ...]) -> Calls:
    """One of its own for each: an encoder packs its weights for the instruction set that it is loaded on."""
    if options.suite_of(shape) == "encoder":
        workload: Any = workloads.encoder_workload(shape, workloads.model_directory(None))
    else:
        workload = workloads.attention_workload(shape)
    variants = CONTENDERS[workload.kind][report.OURS]

    def built() -> Callable[[], Any]:
        return next(iter(variants(workload, threads).values()))()

    return {isa: on(isa, on(isa, built)()) for isa in isas}


def measured(
    shape: str, threads: int, isas: tuple[str, ...], bar: float | None, chosen: Any, watch: timing.Watch
) -> Row:
    """A row, with the peak of the best instruction set in turns with the calls."""
    calls = calls_of(shape, threads, isas)
    work = on(isas[0], machine.multiply_adds(threads))

    def timed() -> Row:
        seconds, peaks = timing.beside_limit(work, calls, chosen.rounds, chosen.min_time, watch)
        return row(shape, threads, seconds, bar) | {"peak_gflops": peaks, **watch.counts()}

    return report.steadily(timed)


def row(shape: str, threads: int, seconds: dict[str, list[float]], bar: float | None) -> Row:
    """The best one's time over the second's: below 1, the second is slower."""
    best, second = seconds.values()
    ratio = report.over_rounds(a / b for a, b in zip(best, second, strict=True))
    return {
        "shape": shape,
        "threads": threads,
        "ms": {isa: 1e3 * statistics.median(each) for isa, each in seconds.items()},
        **ratio,
        "bar": bar,
    }


def peaks(isas: tuple[str, ...], threads: int, rounds: int, watch: timing.Watch) -> dict[str, float]:
    """GFLOP/s of each, the median of as many turns."""

    def turn() -> list[float]:
        return [on(isa, partial(machine.peak_gflops, threads, 0.02))() for isa in isas]

    turns = zip(*(watch.undisturbed(turn) for _ in range(rounds)), strict=True)
    return dict(zip(isas, map(statistics.median, turns), strict=True))


def pace(isa: str, threads: int) -> float:
    """On one instruction set, whichever ran last."""
    return float(on(isa, partial(machine.pace, machine.multiply_adds(threads)))())


def shown(result: Row) -> str:
    times = "".join(f"{isa}: {ms:<10.4g}" for isa, ms in result["ms"].items())
    return f"{result['shape']:<14}{result['threads']:>2}  {times}{report.beside_bar(result)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The second-best instruction set against the best.")
    parser.add_argument("--threads", type=lambda text: [*map(int, text.split(","))], default=[1])
    parser.add_argument("--shapes", type=lambda text: text.split(","), help="of selfattn bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-time", type=float, default=0.05)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    isas = selfattn.available_isas()[:2]
    shapes = chosen.shapes or [*SHAPES["operator"], *[ENCODER] * bool(find_spec(workloads.CARRIER))]
    results, limits = [], {}
    for threads in chosen.threads:
        watch = timing.Watch(partial(pace, isas[0], threads))
        limits[threads] = peaks(isas, threads, chosen.rounds, watch)
        best, second = limits[threads].values()
        words = report.words_of_threads(threads)
        print(f"{words}: FMA peak {best:.1f} GFLOP/s with {isas[0]}, {second:.1f} with {isas[1]}")
        bar = BAR if second >= SAME * best else None
        for shape in shapes:
            results.append(measured(shape, threads, isas, bar, chosen, watch))
            print(shown(results[-1]), *report.marks(results[-1]), sep="  ", flush=True)
    _runtime.use_isa(isas[0])
    chosen.threads = ",".join(map(str, chosen.threads))
    report.write_measured("isa", results, chosen, "threads", "rounds", "min_time", peak_gflops=limits)


if __name__ == "__main__":
    main()
