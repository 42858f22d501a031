"""How time and memory grow: `python bench/growth.py [--threads N] [--json FILE] [--plot FILE]`.

One head of head_dim 64: one sequence of a thousand to 64 thousand tokens, and one to 4096 sequences of 128.
The time of each token stands beside the model: 4 * length * head_dim floating-point operations at the
measured peak. Memory is what one call takes besides its arrays, in a process of its own.
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
LONG = 2.0  # seconds of a call that is timed once: nothing short disturbs it much


def measured(axis: str, batch: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Nanoseconds of each token, what the model says, and MiB."""
    shape = (batch, 1, length, HEAD_DIM)
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    call = partial(
        selfattn.attention, query, key, value, out=np.empty_like(query), num_threads=options.threads
    )
    before = machine.peak_gflops(options.threads)
    first = timing.rough_seconds(call, options.min_time)
    seconds = [first]
    if first < LONG:
        choice = timing.Choice("", call, 0.0, first, {})
        seconds = timing.interleave({"": choice}, options.rounds, options.min_time)[""]
    peak = (before + machine.peak_gflops(options.threads)) / 2
    low, median, high = (1e9 * float(x) / (batch * length) for x in np.percentile(seconds, (25, 50, 75)))
    return {
        "axis": axis,
        "batch": batch,
        "length": length,
        "ns": median,
        "quartiles": [low, high],
        "model_ns": 4 * length * HEAD_DIM / peak,
        "mib": memory.extra_megabytes(shape, options.threads),
    }


def shown(row: dict[str, Any]) -> str:
    fraction = row["model_ns"] / row["ns"]
    return (
        f"{row['batch']:>6}{row['length']:>8}{row['ns']:>14.1f}{row['model_ns']:>14.1f}{fraction:>9.2f}"
        f"{row['mib']:>9.2f}"
    )


# ---- the plot ----


def draw(rows: list[dict[str, Any]], facts: dict[str, Any], path: Path) -> None:
    """Time above memory, over the length and over the batch."""
    from matplotlib.figure import Figure

    from selfattn.bench import plot

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(3, 2))
    for column, name in zip(grid.T, ("length", "batch"), strict=True):
        points = [row for row in rows if row["axis"] == name]
        x = [row[name] for row in points]
        column[0].plot(x, [row["model_ns"] for row in points], color="black", linestyle="--", linewidth=1.2)
        plot.draw_line(column[0], "selfattn", x, [row["ns"] for row in points])
        plot.draw_line(column[1], "selfattn", x, [row["mib"] for row in points])
        column[0].set_xscale("log", base=2)
        column[0].set_yscale("log")
        column[1].set_xticks(x, [plot.thousands(size) for size in x])
        column[1].set_xlabel(
            {"length": "length of one sequence", "batch": "sequences of 128 tokens"}[name], fontsize=8
        )
        for axis in column:
            plot.plain(axis)
            axis.grid(axis="y", color=plot.PALE, linewidth=0.8)
    grid[0, 0].set_ylabel("ns for each token", fontsize=8)
    grid[0, 0].legend(["4 · length · head_dim / FMA peak", "selfattn"], frameon=False, fontsize=8)
    grid[1, 0].set_ylabel("MiB besides the arrays", fontsize=8)
    grid[1, 0].set_ylim(0, 1.3 * max(1, *(row["mib"] for row in rows)))
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    plot.save(figure, facts, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="How time and memory grow with the length and the batch.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, default=LENGTHS[-1], metavar="N", help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-time", type=float, default=0.05)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    places = [("length", 1, length) for length in LENGTHS if length <= options.most]
    places += [
        ("batch", batch, BATCH_LENGTH) for batch in BATCHES if batch * BATCH_LENGTH <= 8 * options.most
    ]
    print(f"{'batch':>6}{'length':>8}{'ns for a token':>14}{'at the peak':>14}{'of peak':>9}{'MiB':>9}")
    results = []
    for place in places:
        results.append(measured(*place, options))
        print(shown(results[-1]), flush=True)
    report.write_measured("growth", results, options, "threads", "rounds", "min_time")
    if options.plot:
        draw(results, machine.describe(), options.plot)


if __name__ == "__main__":
    main()
