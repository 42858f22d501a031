# SPDX-License-Identifier: Apache-2.0
"""Embeds, in a process that soak.py starts: argv is a model, how many batches, of how many sentences at most,
and how many threads (0: all). The sentences come from its input; it prints what it saw.

Nothing of the benchmark is imported here: all of a process counts, and this is what a service would have.
"""

import json
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import selfattn

LOOKS = 40


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def batches(texts: list[str], count: int, most: int) -> Iterator[list[str]]:
    """Of 1 to `most` sentences each, small ones as often as large ones on a logarithmic scale."""
    rng = random.Random(0)  # NumPy's generators would add five megabytes, its own and OpenSSL's
    for _ in range(count):
        yield rng.choices(texts, k=int(math.exp(rng.uniform(0, math.log(most + 1)))))


def embed(model: Path, texts: list[str], count: int, most: int, threads: int | None) -> dict[str, Any]:
    """MiB of resident memory before the model, with it, and as (batches, MiB) on the way."""
    before = resident_megabytes()
    encoder = selfattn.TextEncoder.from_pretrained(model)
    loaded, looks = resident_megabytes(), []
    for done, batch in enumerate(batches(texts, count, most), 1):
        encoder.encode(batch, num_threads=threads)
        if done == 1 or done * LOOKS // count > (done - 1) * LOOKS // count:
            looks.append((done, resident_megabytes()))
    return {"before": before, "loaded": loaded, "looks": looks}


def main() -> None:
    count, most, threads = map(int, sys.argv[2:])
    json.dump(embed(Path(sys.argv[1]), json.load(sys.stdin), count, most, threads or None), sys.stdout)


if __name__ == "__main__":
    main()
