# SPDX-License-Identifier: Apache-2.0
"""What threads give and what they cost: `python bench/threads.py [PART ...] [--threads N] [--json FILE]`.

scaling  N threads against one, by shape: time at one thread / time at N
after    the same for one short call at a time, each after a millisecond of other work
callers  8 Python threads that call at once against one caller: calls in a second
beside   our calls between PyTorch's in one process: time alone / time between. With one thread each there is
         nobody to disturb, so that row is what the processor's caches cost
quota    N threads against one on a single CPU, and under a control group's quota of one: calls in a second

Every figure is better the larger it is, and stands beside the least that it is meant to be.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfattn.bench import machine, options, report, timing
from selfattn.bench.decode import decode_workload
from selfattn.bench.run import CONTENDERS
from selfattn.bench.workloads import attention_workload, encoder_workload, model_directory

Call = Callable[[], Any]
Row = dict[str, Any]
LONG, SPEED_UP = 1e-3, 1.85  # seconds of work from which so much is meant to be gained with two threads
CALLERS = 8
TURNS = 8  # as long as so many turns: where calls are counted in a stretch of time
SCALING = [
    *("1x1x1024x64", "1x1x2048x64", "1x2x1024x64", "1x12x128x64", "8x12x128x64", "1x12x512x64"),
    *("1x12x2048x64", "1x8x2048x128", "32x12x32x32", "1x32x8x4096x128"),
    *("1x1x8x16", "1x1x32x32", "1x2x48x64", "1x4x64x64", "1x12x64x64"),
    *("1x10", "1x128", "8x256", "ragged32"),
]
AFTER = ["1x1x8x16", "1x1x32x32", "1x2x48x64", "1x12x64x64", "1x12x128x64", "1x10"]
TOGETHER = ["1x1x8x16", "1x2x48x64", "1x12x128x64", "1x12x512x64"]
BESIDE = ["1x2x48x64", "1x12x128x64", "1x12x512x64"]
QUOTA = ["1x2x48x64", "1x12x128x64", "1x12x512x64"]


@cache
def workload_of(shape: str) -> Any:
    suite = options.suite_of(shape)
    if suite == "encoder":
        return encoder_workload(shape, model_directory(None))
    return attention_workload(shape) if suite == "operator" else decode_workload(shape, 1, "float32")


def call_of(shape: str, threads: int, name: str = report.OURS) -> Call:
    workload = workload_of(shape)
    variants = CONTENDERS[workload.kind][name](workload, threads)
    return next(iter(variants.values()))()


def row(part: str, case: str, figures: dict[str, float], ratios: list[float], bar: float | None) -> Row:
    return {"part": part, "case": case, "figures": figures, **report.over_rounds(ratios), "bar": bar}


def pace(threads: int) -> float:
    """GFLOP/s of multiply-adds alone, at this moment."""
    timing.wait_until_idle()
    return machine.pace(machine.multiply_adds(threads))


def quotients(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def least_speed_up(seconds: float, threads: int) -> float:
    """For two threads, or as much of perfect for more; a short call is only not to be slower."""
    return threads * SPEED_UP / 2 if seconds >= LONG else 1.0


# ---- the parts: a row for each case ----


def scaling(shapes: list[str], threads: int, rounds: int, min_time: float) -> Iterator[Row]:
    for name, limit in (("FMA peak", machine.peak_gflops), ("read bandwidth", machine.read_bandwidth)):
        yield row("scaling", name, {}, [limit(threads) / limit(1) for _ in range(3)], None)
    work = machine.multiply_adds(threads)
    watch = timing.Watch(partial(machine.pace, work))
    for shape in shapes:
        calls = {str(n): call_of(shape, n) for n in (1, threads)}

        def timed(shape: str = shape, calls: dict[str, Call] = calls) -> Row:
            seconds, peaks = timing.beside_limit(work, calls, rounds, min_time, watch)
            one, many = seconds["1"], seconds[str(threads)]
            bar = least_speed_up(statistics.median(one), threads)
            figures, ratios = milliseconds(one, many, threads), quotients(one, many)
            return row("scaling", shape, figures, ratios, bar) | {"peak_gflops": peaks, **watch.counts()}

        yield report.steadily(timed)


def milliseconds(one: list[float], many: list[float], threads: int) -> dict[str, float]:
    medians = (1e3 * statistics.median(seconds) for seconds in (one, many))
    return dict(zip(("ms, 1 thread", f"ms, {threads} threads"), medians, strict=True))


def after(shapes: list[str], threads: int, rounds: int, min_time: float) -> Iterator[Row]:
    for shape in shapes:
        calls = {n: call_of(shape, n) for n in (1, threads)}
        seconds: dict[int, list[float]] = {n: [] for n in calls}
        peaks = []
        for order in timing.rotations([*map(str, calls)], rounds):
            peaks.append(pace(threads))
            for n in map(int, order):
                seconds[n].append(after_work(calls[n], min_time))
        one, many = seconds[1], seconds[threads]
        bar = least_speed_up(statistics.median(one), threads)
        figures, ratios = milliseconds(one, many, threads), quotients(one, many)
        yield row("after", shape, figures, ratios, bar) | {"peak_gflops": peaks}


def after_work(call: Call, min_time: float, pause: float = 1e-3) -> float:
    """Median seconds of a call after one thread has worked on something else, so that the others sleep."""
    each = []
    end = time.perf_counter() + min_time
    while time.perf_counter() < end or len(each) < 3:
        until = time.perf_counter() + pause
        while time.perf_counter() < until:
            pass
        start = time.perf_counter()
        call()
        each.append(time.perf_counter() - start)
    return statistics.median(each)


def callers(shapes: list[str], threads: int, rounds: int, min_time: float) -> Iterator[Row]:
    for shape in shapes:
        for each in (threads, 1):
            one, all_of_them = [call_of(shape, threads)], [call_of(shape, each) for _ in range(CALLERS)]
            alone, together, peaks = [], [], []
            for _ in range(rounds):
                peaks.append(pace(threads))
                alone.append(calls_per_second(one, TURNS * min_time))
                together.append(calls_per_second(all_of_them, TURNS * min_time))
            figures = {
                "calls/s, 1 caller": statistics.median(alone),
                f"calls/s, {CALLERS} callers": statistics.median(together),
            }
            case = f"{shape}, {each} thread{'s' * (each > 1)} each"
            yield row("callers", case, figures, quotients(together, alone), 0.9) | {"peak_gflops": peaks}


def calls_per_second(calls: list[Call], seconds: float) -> float:
    """Of so many Python threads together, one for each call: their calls until the last one ends."""
    timing.wait_until_idle()
    start = time.perf_counter()

    def repeat(call: Call) -> int:
        count = 0
        while time.perf_counter() - start < seconds or not count:
            call()
            count += 1
        return count

    with ThreadPoolExecutor(len(calls)) as pool:
        count = sum(pool.map(repeat, calls))
    return count / (time.perf_counter() - start)


def beside(shapes: list[str], threads: int, rounds: int, min_time: float) -> Iterator[Row]:
    if find_spec("torch") is None:
        return
    for shape in shapes:
        for n in dict.fromkeys((1, threads)):
            calls = [call_of(shape, n), call_of(shape, n, "torch")]
            of_each = dict(zip("ab", calls, strict=True))
            alone, peaks = timing.beside_limit(machine.multiply_adds(threads), of_each, rounds, min_time)
            between = [alternating(calls, min_time) for _ in range(rounds)]
            for who, name in enumerate((report.OURS, "torch")):
                apart, mixed = alone["ab"[who]], [seconds[who] for seconds in between]
                figures = {
                    "ms, alone": 1e3 * statistics.median(apart),
                    "ms, between": 1e3 * statistics.median(mixed),
                }
                case = f"{shape}, {name}, {n} thread{'s' * (n > 1)}"
                bar = 0.9 if name == report.OURS and n > 1 else None
                yield row("beside", case, figures, quotients(apart, mixed), bar) | {"peak_gflops": peaks}


def alternating(calls: list[Call], min_time: float) -> list[float]:
    """Seconds of each call while they take turns one by one."""
    timing.wait_until_idle()
    total, count = [0.0] * len(calls), 0
    end = time.perf_counter() + min_time
    while time.perf_counter() < end or count < 3:
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            total[place] += time.perf_counter() - start
        count += 1
    return [seconds / count for seconds in total]


# ---- one CPU ----


def quota(shapes: list[str], threads: int, rounds: int, min_time: float) -> Iterator[Row]:
    places = {"one CPU": confined}
    if quotas_can_be_set():
        places["quota of one"] = under_quota
    for shape in shapes:
        for name, place in places.items():
            before = pace(threads)
            one, many = place(shape, threads, rounds, min_time)
            peaks = {"peak_gflops": [before, pace(threads)]}
            figures = {
                "calls/s, 1 thread": statistics.median(one),
                f"calls/s, {threads} threads": statistics.median(many),
            }
            yield row("quota", f"{shape}, {name}", figures, quotients(many, one), 0.9) | peaks


# In a process of its own: argv is where to go, the shape, the threads, the rounds, the seconds of a turn.
INSIDE = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import threads as this
place, shape, threads, rounds, seconds = sys.argv[2:]
if place:
    open(place + "/cgroup.procs", "w").write("0")
else:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
calls = [this.call_of(shape, n) for n in (1, int(threads))]
rates = [[this.calls_per_second([call], float(seconds)) for call in calls] for _ in range(int(rounds))]
print(json.dumps(list(zip(*rates))))
"""


def confined(shape: str, threads: int, rounds: int, min_time: float, group: str = "") -> list[list[float]]:
    """Calls in a second at one thread and at so many, by round, on one CPU, or in the group."""
    seconds = str(TURNS * min_time)  # several periods of a quota
    arguments = [str(Path(__file__).parent), group, shape, str(threads), str(rounds), seconds]
    command = [sys.executable, "-P", "-c", INSIDE, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def under_quota(shape: str, threads: int, rounds: int, min_time: float) -> list[list[float]]:
    with group_of_one_cpu() as group:
        return confined(shape, threads, rounds, min_time, str(group))


@contextmanager
def group_of_one_cpu() -> Iterator[Path]:
    """A control group whose processes together get one CPU; OSError where this process may not make any."""
    old = Path("/sys/fs/cgroup/cpu")  # version 1
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"selfattn-bench-{os.getpid()}"
    group.mkdir()
    try:
        if old.is_dir():
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("100000")
        else:
            (group / "cpu.max").write_text("100000 100000")
        yield group
    finally:
        group.rmdir()


def quotas_can_be_set() -> bool:
    try:
        with group_of_one_cpu():
            return True
    except OSError as error:
        print(f"no quota can be set here: {error}", file=sys.stderr)
        return False


# ---- the table ----

PARTS: dict[str, tuple[Callable[..., Iterator[Row]], list[str]]] = {
    "scaling": (scaling, SCALING),
    "after": (after, AFTER),
    "callers": (callers, TOGETHER),
    "beside": (beside, BESIDE),
    "quota": (quota, QUOTA),
}


def shown(result: Row) -> str:
    figures = "".join(f"{name}: {value:<10.4g}" for name, value in result["figures"].items())
    return f"{result['part']:<9}{result['case']:<32}{figures:<58}{report.beside_bar(result)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What threads give and what they cost.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--threads", type=int, default=max(2, machine.usable_cores()), metavar="N")
    parser.add_argument(
        "--shapes", type=lambda text: text.split(","), help="of selfattn bench, for every part"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-time", type=float, default=0.05)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    results = []
    for part in chosen.parts or PARTS:
        measure, shapes = PARTS[part]
        for result in measure(chosen.shapes or shapes, chosen.threads, chosen.rounds, chosen.min_time):
            results.append(result)
            print(shown(result), *report.marks(result), sep="  ", flush=True)
    report.write_measured("threads", results, chosen, "threads", "rounds", "min_time")


if __name__ == "__main__":
    main()
