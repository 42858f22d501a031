# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow: `python bench/growth.py [--threads N] [--json FILE]`; `bench/plot.py` draws it.

One head of head_dim 64: one sequence of a thousand to 64 thousand tokens, and one to 4096 sequences of 128.
The time of each token stands beside the model: 4 * length * head_dim floating-point operations at the
measured peak. Memory is what one call takes besides its arrays, in a process of its own; what takes seconds
is called that once, and timed there.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import selfattn
from selfattn.bench import machine, memory, report, timing

HEAD_DIM, BATCH_LENGTH = 64, 128
LENGTHS = [1024 * 2**power for power in range(7)]
BATCHES = [4**power for power in range(7)]
LONG = 2.0  # seconds, by the model, of a call that is timed once: nothing short disturbs it much


def measured(
    axis: str, batch: int, length: int, options: argparse.Namespace, watch: timing.Watch
) -> dict[str, Any]:
    """Nanoseconds of each token, what the model says, and MiB."""
    shape = (batch, 1, length, HEAD_DIM)
    multiply_adds = machine.multiply_adds(options.threads)
    peak = watch.undisturbed(partial(machine.pace, multiply_adds))
    operations = 4 * length * HEAD_DIM  # of a token
    once = partial(memory.one_call, shape, options.threads)
    if operations * batch * length < 1e9 * LONG * peak:
        (mib, _), (seconds, peaks) = once(), repeated(shape, options, watch)
    else:
        mib, first = watch.undisturbed(once)
        seconds, peaks = [first], [peak, machine.pace(multiply_adds)]
    low, median, high = (1e9 * float(x) / (batch * length) for x in np.percentile(seconds, (25, 50, 75)))
    return {
        "axis": axis,
        "batch": batch,
        "length": length,
        "ns": median,
        "quartiles": [low, high],
        "model_ns": operations / max(peaks),
        "peak_gflops": peaks,
        "mib": mib,
        **watch.counts(),
    }


def repeated(
    shape: tuple[int, ...], options: argparse.Namespace, watch: timing.Watch
) -> tuple[list[float], list[float]]:
    """Seconds of a call, and GFLOP/s of multiply-adds alone, in each round."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    out = np.empty_like(query)
    call = partial(selfattn.attention, query, key, value, out=out, num_threads=options.threads)
    multiply_adds = machine.multiply_adds(options.threads)
    seconds, peaks = timing.beside_limit(
        multiply_adds, {"attention": call}, options.rounds, options.min_time, watch
    )
    return seconds["attention"], peaks


def shown(row: dict[str, Any]) -> str:
    fraction = row["model_ns"] / row["ns"]
    return (
        f"{row['batch']:>6}{row['length']:>8}{row['ns']:>14.1f}{row['model_ns']:>14.1f}{fraction:>9.2f}"
        f"{row['mib']:>9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="How time and memory grow with the length and the batch.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, default=LENGTHS[-1], metavar="N", help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-time", type=float, default=0.05)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    places = [("length", 1, length) for length in LENGTHS if length <= options.most]
    places += [
        ("batch", batch, BATCH_LENGTH) for batch in BATCHES if batch * BATCH_LENGTH <= 8 * options.most
    ]
    print(f"{'batch':>6}{'length':>8}{'ns for a token':>14}{'at the peak':>14}{'of peak':>9}{'MiB':>9}")
    watch = timing.Watch(partial(machine.pace, machine.multiply_adds(options.threads)))
    results = []
    for place in places:
        results.append(report.steadily(partial(measured, *place, options, watch)))
        print(shown(results[-1]), *report.marks(results[-1]), sep="  ", flush=True)
    report.write_measured("growth", results, options, "threads", "rounds", "min_time")


if __name__ == "__main__":
    main()
