"""The machine, the code and the versions behind a measurement, and the limits it is compared with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Barrier
from typing import Any

PACKAGES = ("numpy", "torch", "transformers", "onnx", "onnxruntime", "openvino")
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
    """The commit, with -dirty when files differ from it; None outside of our own repository."""
    this = Path(__file__).resolve()
    top = git("rev-parse", "--show-toplevel", cwd=this.parent)
    if top is None or not Path(top, *this.parts[-3:]).is_file():  # another project's, with us in its .venv
        return None
    return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*", cwd=this.parent)


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
    import numpy  # noqa: F401  loads its BLAS

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in pools)


def read_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def read_line(path: str) -> str | None:
    return read_text(path).strip() or None


def peak_gflops(threads: int, seconds: float = 0.1, bfloat16: bool = False) -> float:
    """What FMAs on registers alone reach on so many cores with the active instruction set, GFLOP/s.

    With `bfloat16`, products of bfloat16 summed in float32; FMAs where the processor has no such products.
    """
    from selfattn import _kernels

    return on_threads(threads, partial(_kernels.measure_peak, seconds, bfloat16))


def pace(threads: int, rounds: int = 12) -> float:
    """How fast so many threads do FMAs together until the last has done its rounds; a moment, in no unit.

    Of all the time that passes, where `peak_gflops` takes the best: what is lost in between counts.
    """
    from selfattn import _kernels

    def work() -> float:
        return sum(_kernels.measure_peak(1e-4) > 0 for _ in range(rounds))  # each lasts for one round

    start = time.perf_counter()
    return on_threads(threads, work) / (time.perf_counter() - start)


def read_bandwidth(threads: int) -> float:
    """How fast so many threads read memory that no cache holds, GB/s."""
    from selfattn import _kernels

    return on_threads(threads, partial(_kernels.measure_read_bandwidth, READ_BYTES))


def on_threads(threads: int, measure: Callable[[], float]) -> float:
    """The sum of what `measure`, which releases the GIL, returns on threads that start together."""
    start = Barrier(threads)

    def together() -> float:
        start.wait()
        return measure()

    with ThreadPoolExecutor(threads) as pool:
        return sum(future.result() for future in [pool.submit(together) for _ in range(threads)])
