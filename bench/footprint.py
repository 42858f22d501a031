# SPDX-License-Identifier: Apache-2.0
"""What selfattn costs besides time: `python bench/footprint.py [--wheel FILE] [--json FILE]`.

The time of `import selfattn`, of a call above its work, and of a new process until its first embedding; the
memory of one call; the size of the wheel.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import selfattn
from selfattn._native import operator as _operator
from selfattn.bench import machine, memory, report, timing, workloads

ROOT = Path(__file__).resolve().parent.parent
SMALL, SMALLEST = (1, 1, 8, 16), (1, 1, 1, 1)  # batch, heads, length, head_dim

IMPORT_TIME = """
import time, numpy
start = time.perf_counter()
import selfattn
print((time.perf_counter() - start) * 1e3)
"""

# The monotonic clock is the same in every process.
FIRST_EMBEDDING = """
import time
import selfattn
selfattn.TextEncoder.from_pretrained({model!r}).encode(["The pizza came out of the oven and it tasted good."])
print(time.monotonic() - {start})
"""


def import_milliseconds(repeats: int = 11) -> float:
    """Median time of `import selfattn` after `import numpy`, bytecode and files cached."""
    return statistics.median(memory.in_new_process(IMPORT_TIME) for _ in range(repeats + 1))


def first_embedding_seconds(model: Path, repeats: int = 5) -> float:
    """Median time from the start of a process to its first embedding, bytecode and files cached."""
    return statistics.median(
        memory.in_new_process(FIRST_EMBEDDING.format(model=str(model), start=time.monotonic()))
        for _ in range(repeats + 1)
    )


def call_microseconds(rounds: int = 15) -> dict[str, float]:
    """Of a small call on one thread: what the arguments, the result and the way into C take beside the work.

    The work is what the binding, on arguments made ready before, takes longer than for a single number.
    """
    calls = {"call": small_call(SMALL), "with out=": small_call(SMALL, out=np.empty(SMALL, np.float32))}
    bindings = {"binding": bound_call(SMALL), "smallest": bound_call(SMALLEST)}
    seconds = timing.in_turns(calls | bindings, rounds, min_time=0.01)
    medians = {name: 1e6 * statistics.median(each) for name, each in seconds.items()}
    work = medians["binding"] - medians["smallest"]
    return {name: medians[name] - work for name in calls}


def small_call(shape: tuple[int, ...], **options: Any) -> Callable[[], Any]:
    arrays = [np.ones(shape, np.float32) for _ in range(3)]
    return lambda: selfattn.attention(*arrays, num_threads=1, **options)


def bound_call(shape: tuple[int, int, int, int]) -> Callable[[], Any]:
    batch, heads, length, head_dim = shape
    query, key, value, out = (np.ones(shape, np.float32) for _ in range(4))
    sizes = (heads, heads, length, length, head_dim, head_dim)
    return lambda: _operator.attention(query, key, value, out, None, (batch,), sizes, None, 1)


def newest_wheel() -> Path | None:
    wheels = sorted((ROOT / "dist").glob("selfattn-*.whl"), key=lambda path: path.stat().st_mtime)
    return wheels[-1] if wheels else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Import and call time, wheel size and memory of selfattn.")
    parser.add_argument("--wheel", type=Path, default=newest_wheel(), help="default: the newest in dist/")
    parser.add_argument("--length", type=int, default=16384, help="of the attention call (default: 16384)")
    parser.add_argument("--model", type=Path, help="of the first embedding (default: MiniLM, as installed)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    overhead = call_microseconds()
    shape = "x".join(map(str, SMALL))
    numbers = {
        "import, ms above numpy": import_milliseconds(),
        f"a call of {shape}, µs above its work": overhead["call"],
        f"a call of {shape} with out=, µs above its work": overhead["with out="],
        "new process to the first embedding, s": first_embedding(options.model),
        f"peak extra memory at length {options.length}, MiB": memory.extra_megabytes((1, options.length, 64)),
        "wheel, MB": options.wheel.stat().st_size / 1e6 if options.wheel else None,
    }
    for name, number in numbers.items():
        print(f"{name:<50}{'not here' if number is None else f'{number:.2f}'}")
    if options.json:
        report.write_json(numbers | {"machine": machine.describe()}, options.json)


def first_embedding(model: Path | None) -> float | None:
    try:
        return first_embedding_seconds(workloads.model_directory(model))
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    main()
