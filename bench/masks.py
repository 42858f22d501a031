# SPDX-License-Identifier: Apache-2.0
"""What a mask saves and an option costs: `python bench/masks.py [--threads N] [--rounds N] [--json FILE]`.

Each call is verified on its first head against the specification in float64 and timed in turns with the plain
call of the same shape, in float32 and without options. A ratio below 1 is time saved.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import selfattn
from selfattn import reference
from selfattn.bench import machine, report, timing

Shape = tuple[int, int, int, int]  # batch, heads, length, head_dim
BLOCK = 128  # of the block-sparse mask


@dataclass(frozen=True)
class Case:
    """A call, and how far each of its results may be from the specification, relative to the largest."""

    name: str
    shape: Shape
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    tolerance: float = 2e-5


def cases() -> list[Case]:
    rng = np.random.default_rng(0)
    long, padded = (1, 4, 2048, 64), (8, 12, 256, 64)
    blocks = rng.random((2048 // BLOCK, 2048 // BLOCK)) < 0.25
    np.fill_diagonal(blocks, True)
    sparse = np.kron(blocks, np.ones((BLOCK, BLOCK), bool))
    third = {"mask": (np.arange(256) < 100)[None, None, None]}
    ones = {"bias": np.zeros((2048, 2048), np.float32)}
    return [
        Case("causal", (1, 12, 256, 64), {"causal": True}),
        Case("causal", (1, 12, 1024, 64), {"causal": True}),
        Case("causal", (1, 4, 4096, 64), {"causal": True}),
        Case("window=(255, 0)", (1, 1, 8192, 64), {"window": (255, 0)}),
        Case("kv_lengths: 100 of 256 keys", padded, {"kv_lengths": np.full(8, 100)}),
        Case("mask: 100 of 256 keys", padded, third),
        Case(f"mask: {blocks.mean():.0%} of the {BLOCK} x {BLOCK} blocks", long, {"mask": sparse}),
        Case("mask: every key, one by one", long, {"mask": rng.random((2048, 2048)) < 0.5}),
        Case("bias (q_len, kv_len)", long, ones),
        Case("alibi_slopes", long, {"alibi_slopes": selfattn.alibi_slopes(4)}),
        Case("softcap", long, {"softcap": 30.0}),
        Case("sinks", long, {"sinks": np.zeros(4)}),
        Case("float16 arrays", long, dtype="float16", tolerance=2e-3),
        Case("bfloat16 arrays", long, dtype="bfloat16", tolerance=2e-2),
        Case("bfloat16 arrays and precision", long, {"precision": "bfloat16"}, "bfloat16", 4e-2),
        Case("float32 arrays, bfloat16 precision", long, {"precision": "bfloat16"}, tolerance=4e-2),
        Case("float64 arrays", long, dtype="float64", tolerance=1e-12),
    ]


def arrays_for(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    if case.dtype == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(case.dtype)
    return [rng.standard_normal(case.shape).astype(dtype) for _ in range(3)]


def call_of(case: Case, threads: int) -> Callable[[], np.ndarray]:
    arrays = arrays_for(case)
    return lambda: selfattn.attention(*arrays, **case.options, num_threads=threads)


def verify(case: Case, threads: int) -> None:
    """The first head of the last item, against the specification in float64."""
    wide = [array[-1:, :1].astype(np.float64) for array in arrays_for(case)]
    options = {name: value for name, value in case.options.items() if name != "precision"}
    for name in ("kv_lengths", "alibi_slopes", "sinks"):
        if name in options:
            options[name] = options[name][-1:] if name == "kv_lengths" else options[name][:1]
    expected = reference.attention(*wide, **options)
    error = np.abs(call_of(case, threads)()[-1:, :1].astype(np.float64) - expected).max()
    if not error <= case.tolerance * np.abs(expected).max():
        raise timing.WrongResultError(f"{case.name}: error {error:.1e}")


def ratio(case: Case, threads: int, rounds: int, min_time: float) -> dict[str, Any]:
    """The call's time over the plain call's, the median over the rounds, and the quartiles."""
    verify(case, threads)
    plain = Case("plain", case.shape)
    calls = {name: call_of(which, threads) for name, which in (("plain", plain), ("case", case))}

    def timed() -> dict[str, Any]:
        seconds, peaks = timing.beside_limit(machine.multiply_adds(threads), calls, rounds, min_time)
        ratios = (case / plain for case, plain in zip(seconds["case"], seconds["plain"], strict=True))
        shape = "x".join(map(str, case.shape))
        return {"name": case.name, "shape": shape, **report.over_rounds(ratios), "peak_gflops": peaks}

    return report.steadily(timed)


def main() -> None:
    parser = argparse.ArgumentParser(description="What masks save and options cost.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--min-time", type=float, default=0.05)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = []
    for case in cases():
        result = ratio(case, options.threads, options.rounds, options.min_time)
        line = f"{result['name']:<40}{result['shape']:<16}{report.spread(result)}"
        print(line, *report.marks(result), sep="  ", flush=True)
        results.append(result)
    report.write_measured("masks", results, options, "threads", "rounds", "min_time")


if __name__ == "__main__":
    main()
