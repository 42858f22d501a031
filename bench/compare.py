# SPDX-License-Identifier: Apache-2.0
"""Did it get slower? `python bench/compare.py A B` builds two commits and compares the same calls of both.

The calls are in compare_calls.py and use public names alone; each commit is built by its own setup.py, so it
does not matter where either keeps its files. Printed are B / A of the instructions and of the time of each
call, of the time of `import selfattn`, and of the size of the wheel. The exit status is 1 if the instructions
of a call grew by more than 1 % (--fail-above), or if B cannot make a call that A can.

Instructions are counted by valgrind's callgrind on one thread with AVX2, the widest that it knows, and hardly
differ from run to run. Times are measured in turns, with the instruction set that SELFATTN_ISA says or the
best there is, and move with the machine. Each commit is built in a directory of its own that goes at the end,
or stays in --builds DIR for the next comparison; NumPy is this interpreter's. For changes that are not
committed: `bench/compare.py HEAD $(git stash create)`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CALLS = Path(__file__).resolve().with_name("compare_calls.py")
MARK = "getppid"  # see compare_calls.mark

Pair = tuple[float | None, float | None]


# ---- builds ----


class Build(NamedTuple):
    site: Path  # for PYTHONPATH
    wheel: Path


def build(commit: str, directory: Path) -> Build:
    """The package of a commit, installed below the directory, unless it is there already."""
    source, wheels, site = (directory / name for name in ("source", "wheels", "site"))
    finished = directory / "finished"
    if not finished.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        archive = directory / "source.zip"
        run("git", "-C", str(ROOT), "archive", "--output", str(archive), commit)
        zipfile.ZipFile(archive).extractall(source)
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        run(
            *pip,
            "wheel",
            "--no-deps",
            *["--no-build-isolation"] * tools_at_hand(),
            "-w",
            str(wheels),
            str(source),
        )
        run(*pip, "install", "--no-deps", "--target", str(site), *map(str, wheels.glob("*.whl")))
        shutil.rmtree(source)
        finished.touch()
    return Build(site, next(wheels.glob("*.whl")))


def tools_at_hand() -> bool:
    """Whether this environment can build without a network, which pip's own environment for it needs."""
    try:
        return int(version("setuptools").split(".")[0]) >= 77 and bool(version("Cython"))
    except PackageNotFoundError:
        return False


def run(*command: str, **options: Any) -> str:
    """What the command prints; SystemExit with what it complains of."""
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr.strip()}")
    return result.stdout


def environment(site: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONHASHSEED": "0", **more}


# ---- instructions ----


def instructions(site: Path, *names: str) -> dict[str, float]:
    """Of each call (or of those named), by callgrind; a call that failed is not there."""
    with TemporaryDirectory() as directory:
        out = Path(directory, "out")
        tool = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARK}"]
        command = [*tool, sys.executable, "-P", str(CALLS), "count", *names]
        done = run(*command, env=environment(site, SELFATTN_ISA="avx2")).split()
        # Dumps are numbered from 1; the one that the second mark of a call writes is that call's.
        totals = [dump_total(Path(f"{out}.{2 * number}")) for number in range(1, len(done) + 1)]
    return dict(zip(done, totals, strict=True))


def counted(sites: list[Path], names: list[str], limit: float) -> list[dict[str, float]]:
    """`instructions` of both; a call that grew above the limit is counted again; the smaller number holds."""
    counts = [instructions(site, *names) for site in sites]
    a, b = counts
    if suspects := [name for name in names if name in a and b.get(name, 0) > limit * a[name]]:
        for count, site in zip(counts, sites, strict=True):
            again = instructions(site, *suspects)
            count.update({name: min(count[name], again.get(name, count[name])) for name in suspects})
    return counts


def dump_total(path: Path) -> float:
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("totals:"):
            return float(line.split()[1])
    raise ValueError(f"{path.name} holds no totals: is the function {MARK} called something else here?")


# ---- times ----


class Timer:
    """A process with one of the builds, which measures when it is asked."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self.stdin, self.stdout = stdin, stdout

    def seconds(self, name: str, calls: int) -> float | None:
        """Seconds per call, or None when the build cannot do it."""
        print(name, calls, file=self.stdin, flush=True)
        answer = self.stdout.readline()
        if not answer:
            sys.exit(f"the process that measures {name} has ended")
        return None if answer.startswith("error") else float(answer) / calls


@contextmanager
def timer(site: Path) -> Iterator[Timer]:
    command = [sys.executable, "-P", str(CALLS), "time"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(site), **pipes) as process:
        yield Timer(
            process.stdin, process.stdout
        )  # leaving the block closes the pipes, which ends the process


def times(timers: tuple[Timer, Timer], name: str, rounds: int, min_time: float) -> list[tuple[float, float]]:
    """Seconds per call of A and of B in every round, A B, B A, ...; none when a build cannot do it."""
    firsts = [timer.seconds(name, 1) for timer in timers]
    if None in firsts:
        return []
    calls = max(1, round(min_time / max(firsts)))
    pairs = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        seconds = {which: timers[which].seconds(name, calls) for which in order}
        pairs.append((seconds[0], seconds[1]))
    return pairs


IMPORT = """
import time, numpy
start = time.perf_counter()
import selfattn
print(time.perf_counter() - start)
"""


def import_times(sites: list[Path], rounds: int) -> list[tuple[float, float]]:
    """Seconds of `import selfattn` after NumPy's in new processes, A and B in turns, files cached."""
    command = (sys.executable, "-P", "-c", IMPORT)
    pairs = []
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        seconds = {which: float(run(*command, env=environment(sites[which]))) for which in order}
        pairs.append((seconds[0], seconds[1]))
    return pairs[1:]  # the first wrote the bytecode


# ---- the report ----


def compared(name: str, counts: Pair, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """One row: B over A in instructions and, as the median of the rounds, in time."""
    row: dict[str, Any] = {"call": name, "instructions": counts, "instruction_ratio": None}
    if counts[0] and counts[1]:
        row["instruction_ratio"] = counts[1] / counts[0]
    if pairs:
        ratios = [b / a for a, b in pairs]
        row["milliseconds"] = [1e3 * statistics.median(side) for side in zip(*pairs, strict=True)]
        row["time_ratio"] = statistics.median(ratios)
        if len(ratios) == 1:
            ratios *= 2
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row["time_quartiles"] = [low, high]
    return row


HEADING = f"{'call':<30}{'instructions A':>16}{'B':>16}{'B / A':>9}{'ms A':>11}{'B':>11}   B / A"


def shown(row: dict[str, Any]) -> str:
    counts = "".join(f"{'-' if count is None else f'{count:,.0f}':>16}" for count in row["instructions"])
    ratio = row["instruction_ratio"]
    line = f"{row['call']:<30}{counts}{'-' if ratio is None else f'{ratio:.4f}':>9}"
    if "time_ratio" not in row:
        return f"{line}{'-':>11}{'-':>11}   -"
    low, high = row["time_quartiles"]
    milliseconds = "".join(f"{ms:>11.4f}" for ms in row["milliseconds"])
    return f"{line}{milliseconds}   {row['time_ratio']:.3f} ±{(high - low) / 2:.3f}"


def lost(rows: list[dict[str, Any]]) -> list[str]:
    """The calls that A can make and B cannot."""
    return [row["call"] for row in rows if row["instructions"][0] and not row["instructions"][1]]


def grown(rows: list[dict[str, Any]], limit: float) -> list[str]:
    """The calls whose instructions grew by more than the limit allows."""
    return [row["call"] for row in rows if row["instruction_ratio"] and row["instruction_ratio"] > limit]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when instructions grew above the limit or a call is lost."""
    options = parse(arguments)
    with ExitStack() as stack:
        directory = options.builds or Path(
            stack.enter_context(TemporaryDirectory(prefix="selfattn-compare-"))
        )
        builds = []
        for side, name in (("A", options.a), ("B", options.b)):
            print(f"{side} is {run('git', '-C', str(ROOT), 'log', '-1', '--format=%h %s', name).strip()}")
            commit = run("git", "-C", str(ROOT), "rev-parse", f"{name}^{{commit}}").strip()
            builds.append(build(commit, directory / commit))
        rows = compare([built.site for built in builds], options)
        sizes = [built.wheel.stat().st_size / 1e6 for built in builds]
    print(f"wheel, MB: A {sizes[0]:.3f}, B {sizes[1]:.3f}, B / A {sizes[1] / sizes[0]:.3f}")
    if options.json:
        document = {"a": options.a, "b": options.b, "calls": rows, "wheel_megabytes": sizes}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    worse = [
        f"{name}: instructions grew above {options.fail_above} x" for name in grown(rows, options.fail_above)
    ]
    worse += [f"{name}: B cannot make this call" for name in lost(rows)]
    print(*worse, sep="\n", end="\n" * bool(worse))
    return int(bool(worse))


def compare(sites: list[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    names = run(sys.executable, "-P", str(CALLS), "names", env=environment(sites[0])).split()
    chosen = [name for name in names if any(part in name for part in options.calls)]
    counts = [{}, {}] if options.times_only else counted(sites, chosen, options.fail_above)
    print(HEADING)
    rows = []
    with timer(sites[0]) as a, timer(sites[1]) as b:
        for name in chosen:
            pairs = times((a, b), name, options.rounds, options.min_time)
            rows.append(compared(name, (counts[0].get(name), counts[1].get(name)), pairs))
            print(shown(rows[-1]), flush=True)
    rows.append(compared("import selfattn", (None, None), import_times(sites, options.rounds)))
    print(shown(rows[-1]), flush=True)
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the instructions and the time of two commits.")
    parser.add_argument("a", metavar="A", help="the commit to compare with")
    parser.add_argument("b", metavar="B", help="the commit that may be slower")
    parser.add_argument(
        "--fail-above",
        type=float,
        default=1.01,
        metavar="RATIO",
        help="exit 1 if the instructions of a call grew more (default: 1.01)",
    )
    parser.add_argument("--times-only", action="store_true", help="count no instructions: without valgrind")
    parser.add_argument("--builds", type=Path, metavar="DIR", help="keep the builds there and use them again")
    parser.add_argument(
        "--calls",
        type=lambda text: text.split(","),
        default=[""],
        metavar="PARTS",
        help="only calls with one of these parts in their names, such as encoder,decode",
    )
    parser.add_argument("--rounds", type=int, default=9, help="of times, in turns (default: 9)")
    parser.add_argument("--min-time", type=float, default=0.05, help="seconds of each turn (default: 0.05)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    options = parser.parse_args(arguments)
    if not options.times_only and shutil.which("valgrind") is None:
        parser.error("instructions are counted by valgrind, which is not there; --times-only does without")
    return options


if __name__ == "__main__":
    sys.exit(main())
