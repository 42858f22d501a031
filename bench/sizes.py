# SPDX-License-Identifier: Apache-2.0
"""Every head_dim and every layout: `python bench/sizes.py [--threads N] [--rounds N] [--json FILE]`.

Fractions of the peak at length 512, with any head_dim, with another value_dim, and on arrays that do not
lie in one piece. Each case is verified, and timed in turns with its neighbour: contiguous arrays of as many
heads whose head_dim and value_dim are the mean of the case's, rounded up to a multiple of 16.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import selfattn
from selfattn import reference
from selfattn.bench import machine, report, timing

LENGTH = 512
ROW = 1024  # float32 numbers, 4096 bytes: rows that far apart fall into one set of the first cache
BAR, TOLERANCE = 0.9, 2e-5
CONTIGUOUS, INSIDE, MODEL, WIDE = LAYOUTS = (
    "contiguous",
    "(batch, length, heads, dim)",
    "the same, rows of 4096 bytes",
    "a part of rows of 4096 bytes",
)


@dataclass(frozen=True)
class Case:
    head_dim: int
    value_dim: int
    layout: str = CONTIGUOUS
    heads: int = 12

    @property
    def flops(self) -> int:
        return 2 * self.heads * LENGTH**2 * (self.head_dim + self.value_dim)

    @property
    def neighbour(self) -> "Case":
        size = -(-(self.head_dim + self.value_dim) // 32) * 16
        return Case(size, size, heads=self.heads)


def cases() -> list[Case]:
    return [
        *(Case(size, size) for size in (16, 32, 40, 64, 72, 80, 96, 100, 128, 256)),
        *(Case(*sizes) for sizes in ((64, 128), (128, 64), (192, 128), (64, 40))),
        *(Case(size, size, INSIDE) for size in (32, 64, 100, 128)),
        *(Case(size, size, MODEL, ROW // size) for size in (16, 32, 64, 128, 256)),
        *(Case(size, size, WIDE) for size in (16, 32, 64, 100, 128, 256)),
    ]


def array(case: Case, dim: int, rng: np.random.Generator) -> np.ndarray:
    """(1, heads, length, dim), laid out as the case says."""
    if case.layout in (INSIDE, MODEL):
        return rng.standard_normal((1, LENGTH, case.heads, dim), dtype=np.float32).swapaxes(1, 2)
    wide = rng.standard_normal((1, case.heads, LENGTH, ROW if case.layout == WIDE else dim), dtype=np.float32)
    return wide[..., :dim]


def call_of(case: Case, threads: int) -> Callable[[], np.ndarray]:
    """Verified on its first head against the specification in float64."""
    rng = np.random.default_rng(0)
    dims = (case.head_dim, case.head_dim, case.value_dim, case.value_dim)
    query, key, value, out = (array(case, dim, rng) for dim in dims)
    call = partial(selfattn.attention, query, key, value, out=out, num_threads=threads)
    first = call()[:, :1]
    error = np.abs(first - reference.attention(*(x[:, :1].astype(float) for x in (query, key, value)))).max()
    if not error <= TOLERANCE:
        raise timing.WrongResultError(f"{case}: error {error:.1e}")
    return call


def result(case: Case, threads: int, rounds: int, min_time: float, watch: timing.Watch) -> dict[str, Any]:
    """Fractions of the peak of the case and of its neighbour; their ratio, the median over the rounds."""
    pair = {"case": case, "neighbour": case.neighbour} if case != case.neighbour else {"case": case}
    calls = {name: call_of(which, threads) for name, which in pair.items()}

    def timed() -> dict[str, Any]:
        seconds, peaks = timing.beside_limit(machine.multiply_adds(threads), calls, rounds, min_time, watch)
        rates = {name: [pair[name].flops / each / 1e9 for each in seconds[name]] for name in pair}
        return row(case, rates, peaks) | watch.counts()

    return report.steadily(timed)


def row(case: Case, rates: dict[str, list[float]], peaks: list[float]) -> dict[str, Any]:
    """rates: GFLOP/s of the case, and of its neighbour if it has one, in every round."""
    result = {
        "head_dim": case.head_dim,
        "value_dim": case.value_dim,
        "layout": case.layout,
        "heads": case.heads,
        "peak_gflops": peaks,
        "of_peak": statistics.median(rates["case"]) / max(peaks),
    }
    if "neighbour" in rates:
        ratio = report.over_rounds(a / b for a, b in zip(rates["case"], rates["neighbour"], strict=True))
        result |= {"neighbour": case.neighbour.head_dim, **ratio, "bar": BAR}
        result["neighbour_of_peak"] = statistics.median(rates["neighbour"]) / max(peaks)
    return result


def shown(row: dict[str, Any]) -> str:
    text = f"{row['head_dim']:>4}{row['value_dim']:>5}  {row['layout']:<30}{row['of_peak']:>5.2f}"
    if "ratio" not in row:
        return text
    return f"{text}{row['neighbour']:>5}: {row['neighbour_of_peak']:.2f}  {report.beside_bar(row)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Every head_dim and every layout.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-time", type=float, default=0.02)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    watch = timing.Watch(partial(machine.pace, machine.multiply_adds(options.threads)))
    results = []
    for case in cases():
        results.append(result(case, options.threads, options.rounds, options.min_time, watch))
        print(shown(results[-1]), *report.marks(results[-1]), sep="  ", flush=True)
    report.write_measured("sizes", results, options, "threads", "rounds", "min_time")


if __name__ == "__main__":
    main()
