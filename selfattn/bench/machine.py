# SPDX-License-Identifier: Apache-2.0
"""The machine, the code and the versions behind a measurement, and the limits it is compared with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

PACKAGES = ("numpy", "torch", "transformers", "onnx", "onnxruntime", "openvino")
WRITTEN = ("bench/results", "docs", "README.md")  # by the benchmark itself
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
READ_BYTES = 256 << 20  # several times any last-level cache share of one thread


def describe() -> dict[str, Any]:
    """Everything that a number depends on and that does not change during a run."""
    import selfattn

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "cpu": cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "cgroup_cpu_max": read_line("/sys/fs/cgroup/cpu.max"),
        "governor": read_line(GOVERNOR),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "isa": selfattn.active_isa(),
        "python": platform.python_version(),
        "versions": {"selfattn": selfattn.__version__} | {name: package_version(name) for name in PACKAGES},
        "numpy_blas": numpy_blas(),
    }


def git_commit() -> str | None:
    """The commit, with -dirty when files differ from it that a run does not write; None outside of our own
    repository.
    """
    this = Path(__file__).resolve()
    top = git("rev-parse", "--show-toplevel", cwd=this.parent)
    if top is None or not Path(top, *this.parts[-3:]).is_file():  # another project's, with us in its .venv
        return None
    commit = git("describe", "--always", "--abbrev=12", "--exclude=*", cwd=this.parent)
    others = (":/", *(f":(top,exclude){path}" for path in WRITTEN))
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *others, cwd=this.parent)
    return f"{commit}-dirty" if commit and changed else commit


def git(*arguments: str, cwd: Path) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def cpu_model() -> str:
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numpy_blas() -> str | None:
    """Which BLAS, which of its kernels: a build that guesses the processor wrong is several times slower."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in pools)


def read_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def read_line(path: str) -> str | None:
    return read_text(path).strip() or None


# ---- limits ----


def multiply_adds(threads: int, bfloat16: bool = False, rounds: int = 12) -> Callable[[], float]:
    """A call in which so many threads do FMAs on registers alone, milliseconds for each round.

    It lasts until the slowest is done, as any contender's, and returns the floating-point operations. With
    `bfloat16`, products of bfloat16 summed in float32; FMAs where the processor has no such products.
    """
    from selfattn._native import runtime as _runtime

    def work() -> float:
        return sum(_runtime.multiply_add("bfloat16" if bfloat16 else None) for _ in range(rounds))

    return partial(on_threads, [work] * threads)


def reads(threads: int) -> Callable[[], float]:
    """A call in which so many threads each read memory that no cache holds; it returns the bytes."""
    from selfattn._native import runtime as _runtime

    pieces = [np.ones(READ_BYTES // 4, np.float32) for _ in range(threads)]
    return partial(on_threads, [partial(_runtime.read_all, piece) for piece in pieces])


def pace(work: Callable[[], float]) -> float:
    """What a call does in a second, in units of 10^9; of all the time that passes."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start) / 1e9


def peak_gflops(threads: int, seconds: float = 0.1, bfloat16: bool = False) -> float:
    """What FMAs, or products of bfloat16, reach on so many cores at their best moments, GFLOP/s."""
    end = time.perf_counter() + seconds

    def best() -> float:
        work, fastest = multiply_adds(1, bfloat16, rounds=1), 0.0
        while time.perf_counter() < end or not fastest:
            fastest = max(fastest, pace(work))
        return fastest

    return on_threads([best] * threads)


def read_bandwidth(threads: int, times: int = 5) -> float:
    """How fast so many threads read memory that no cache holds, GB/s: the best of so many times."""
    work = reads(threads)
    return max(pace(work) for _ in range(times))


def on_threads(works: Sequence[Callable[[], float]]) -> float:
    """The sum of what all return, which release the GIL, on threads that start together."""
    if len(works) == 1:
        return works[0]()
    start = Barrier(len(works))

    def together(work: Callable[[], float]) -> float:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return sum(pool.map(together, works))
