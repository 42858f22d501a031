# SPDX-License-Identifier: Apache-2.0
"""The plots of measurements: `python bench/plot.py FILE.json ... --to FILE.png`.

Each FILE.json is what `selfattn bench` wrote with --json. Rows of several files come into one picture; the
machine and the date are those of the first. What there is to see is drawn: bars, lengths, roofline, threads.
Or one FILE.json of `bench/growth.py`: time above memory, over the length and over the batch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from selfattn.bench import plot


def growth(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(3, 2))
    words = {"length": "length of one sequence", "batch": "sequences of 128 tokens"}
    for column, (name, label) in zip(grid.T, words.items(), strict=True):
        points = [row for row in rows if row["axis"] == name]
        x = [row[name] for row in points]
        column[0].plot(x, [row["model_ns"] for row in points], color="black", linestyle="--", linewidth=1.2)
        plot.draw_line(column[0], "selfattn", x, [row["ns"] for row in points])
        plot.draw_line(column[1], "selfattn", x, [row["mib"] for row in points])
        column[0].set_xscale("log", base=2)
        column[0].set_yscale("log")
        column[1].set_xticks(x, [plot.thousands(size) for size in x])
        column[1].set_xlabel(label, fontsize=8)
        for axis in column:
            plot.plain(axis)
            axis.grid(axis="y", color=plot.PALE, linewidth=0.8)
    grid[0, 0].set_ylabel("ns for each token", fontsize=8)
    grid[0, 0].legend(["4 · length · head_dim / FMA peak", "selfattn"], frameon=False, fontsize=8)
    grid[1, 0].set_ylabel("MiB besides the arrays", fontsize=8)
    grid[1, 0].set_ylim(0, 1.3 * max(1, *(row["mib"] for row in rows)))
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    figure.align_ylabels(grid[:, 0])
    return figure


def together(documents: list[plot.Document]) -> plot.Document:
    """The rows of all, on the machine of the first, under the limits that any of them measured."""
    machine = documents[0]["machine"]
    limits: dict[str, dict[str, float]] = {}
    for document in documents:
        for threads, measured in document["machine"]["limits"].items():
            limits[threads] = measured | limits.get(threads, {})
    machine["limits"] = limits
    return {"machine": machine, "results": [row for document in documents for row in document["results"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what selfattn bench or bench/growth.py measured.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what --json wrote")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="such as docs/bench.png")
    options = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in options.files]
    if any("growth" in document for document in documents):
        if len(documents) > 1:
            parser.error("what growth.py measured is drawn alone: give one file")
        plot.save(growth(documents[0]["growth"]), documents[0]["machine"], options.to)
        print(options.to)
    else:
        print(*plot.plot(together(documents), options.to), sep="\n")


if __name__ == "__main__":
    main()
