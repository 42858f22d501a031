# SPDX-License-Identifier: Apache-2.0
"""Hashes of what the public functions compute: two outputs are equal if no bit of a result changed.

    python tests/support/fingerprints > before.txt            a line for each result: its name and a SHA-256
    python tests/support/fingerprints --share 4 > quarter.txt         one line of four, chosen by name
    python tests/support/fingerprints compare before.txt after.txt

The cases use the public names of selfattn only, so that the same files run on older and on newer commits.
The package that Python imports is the package under test; SELFATTN_ISA chooses the instruction set. Every
input is made of integers, and is the same on every machine. All NaN have one hash: the processor chooses
which NaN an operation passes on.

Two kinds of names say that a difference may be right. Of numpy/..., NumPy's own functions (exp, sin) compute
a part, and they differ between machines. The bits of .../precision=bfloat16/... depend on the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attention_cases
import exact
import layer_cases
import text_cases

GROUPS = (attention_cases, layer_cases, text_cases)


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    for group in GROUPS:
        yield from group.cases()


def run(share: int, only: str, slowest: int) -> None:
    import selfattn

    seen: set[str] = set()
    times: list[tuple[float, str]] = []
    for name, compute in cases():
        if name in seen:
            raise ValueError(f"two cases are called {name}")
        seen.add(name)
        if only in name and zlib.crc32(name.encode()) % share == 0:
            start = time.perf_counter()
            print(name, exact.fingerprint(compute()), flush=True)
            times.append((time.perf_counter() - start, name))
    total = sum(seconds for seconds, _ in times)
    print(f"{len(times)} results with {selfattn.active_isa()} in {total:.1f} s", file=sys.stderr)
    for seconds, name in sorted(times, reverse=True)[:slowest]:
        print(f"{seconds:8.3f} s  {name}", file=sys.stderr)


def read(path: str) -> dict[str, str]:
    lines = (line.split() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return dict(line for line in lines if len(line) == 2)


def compare(left: str, right: str, *, subset: bool, machines: bool) -> int:
    """Prints the names of results that differ or are on one side alone, and returns how many there are."""
    one, other = read(left), read(right)
    alone = [f"only in {left}: {name}" for name in one if name not in other]
    added = [f"only in {right}: {name}" for name in other if name not in one]
    both = [name for name in one if name in other]
    different = [name for name in both if one[name] != other[name]]
    if machines:
        different = [name for name in different if not name.startswith("numpy/")]
    problems = [f"different: {name}" for name in different]
    problems += [] if subset and both else alone + added
    print("\n".join([*problems, f"{len(both)} results in both, {len(different)} of them different"]))
    return len(problems) + (not both)


def main() -> int:
    if sys.argv[1:2] == ["compare"]:
        parser = argparse.ArgumentParser(prog="fingerprints compare", description="the same bits?")
        parser.add_argument("left")
        parser.add_argument("right")
        parser.add_argument(
            "--subset", action="store_true", help="what one of them alone has is no difference"
        )
        parser.add_argument("--machines", action="store_true", help="of two machines: numpy/... may differ")
        given = parser.parse_args(sys.argv[2:])
        return min(1, compare(given.left, given.right, subset=given.subset, machines=given.machines))
    parser = argparse.ArgumentParser(prog="fingerprints", description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=int, default=1, help="one result of so many (1: all of them)")
    parser.add_argument("--only", default="", help="results with this in their names")
    parser.add_argument("--slowest", type=int, default=0, help="say which so many results took longest")
    given = parser.parse_args()
    run(given.share, given.only, given.slowest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
