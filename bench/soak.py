# SPDX-License-Identifier: Apache-2.0
"""Resident memory under a mixed load: `python bench/soak.py [--batches N] [--json FILE]`. Linux only.

One process (resident.py) embeds batches of a random number of sentences of Python's documentation, and writes
down its resident memory as it goes. All of it counts: Python, NumPy, the tokenizer and the sentences too.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from selfattn.bench import report, workloads

ABOVE_WEIGHTS = 60.0  # MiB that it is meant to stay below
FLAT = 1.0  # MiB by which the last quarter of the batches may exceed the one before


def soak(model: Path, count: int, most: int, threads: int | None) -> dict[str, Any]:
    """MiB of resident memory before the model, with it, and as (batches, MiB) on the way; of its weights."""
    sentences = json.dumps(list(workloads.documentation_sentences()))
    arguments = [str(model), str(count), str(most), str(threads or 0)]
    command = [sys.executable, "-P", str(Path(__file__).parent / "resident.py"), *arguments]
    printed = subprocess.run(command, input=sentences, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed) | {"weights": (model / "model.safetensors").stat().st_size / 2**20}


def figures(measured: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """What the table shows, and the most that it is meant to be."""
    resident = [megabytes for _, megabytes in measured["looks"]]
    quarter = max(1, len(resident) // 4)
    growth = statistics.mean(resident[-quarter:]) - statistics.mean(resident[-2 * quarter : -quarter])
    return [
        ("before the model is loaded", measured["before"], None),
        ("with the model", measured["loaded"], None),
        ("after the first batch", resident[0], None),
        (f"after {measured['looks'][-1][0]} batches", resident[-1], None),
        ("the most of all above the weights", max(resident) - measured["weights"], ABOVE_WEIGHTS),
        ("growth in the last quarter", growth, FLAT),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Resident memory under a mixed load.")
    parser.add_argument("--batches", type=int, default=10_000, metavar="N")
    parser.add_argument("--sentences", type=int, default=16, metavar="N", help="of the largest batch (16)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as there are processors")
    parser.add_argument("--model", type=Path, metavar="DIRECTORY", help="default: MiniLM, as installed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    model = workloads.model_directory(options.model)
    measured = soak(model, options.batches, options.sentences, options.threads)
    table = figures(measured)
    for name, value, most in table:
        bar = "" if most is None else f"  at most {most:g}{'  ABOVE' if value > most else ''}"
        print(f"{name:<36}{value:>8.1f} MiB{bar}")
    report.write_measured("soak", table, options, "batches", "sentences", resident=measured)


if __name__ == "__main__":
    main()
