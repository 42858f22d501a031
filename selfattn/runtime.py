# SPDX-License-Identifier: Apache-2.0
"""How many threads a call may use, and on which instruction set the kernels run.

The number of threads never changes a result. The first of these that is given counts: the argument
`num_threads` of a call, the nearest `with threads(n):`, `set_num_threads(n)`, and `default_num_threads()`.
All of them go from 1 to MAX_THREADS. `register_with_threadpoolctl()` makes this library one of those whose
threads the package threadpoolctl shows and limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from selfattn._checks import as_integer
from selfattn._native import runtime as _runtime

MAX_THREADS = 1024  # that the kernels' pool has room for

_override: ContextVar[int | None] = ContextVar("selfattn_num_threads", default=None)


def set_num_threads(num_threads: int) -> None:
    """Sets the number of threads (>= 1) of all calls that aren't told another one, for the whole process."""
    _runtime.set_num_threads(_checked(num_threads))


def get_num_threads() -> int:
    """The number of threads that a call made here and now would use."""
    return resolve_num_threads(None)


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """`with threads(n):` limits the calls inside to n threads, and no other Python thread or asyncio task."""
    token = _override.set(_checked(num_threads))
    try:
        yield
    finally:
        _override.reset(token)


def resolve_num_threads(num_threads: int | None) -> int:
    """The argument of a call, or what the context or the process says when it is None.

    Raises TypeError when it is not an integer, ValueError when it is less than 1 or more than MAX_THREADS.
    """
    if num_threads is not None:
        return _checked(num_threads)
    override = _override.get()
    return _runtime.get_num_threads() if override is None else override


def available_isas() -> tuple[str, ...]:
    """The instruction sets that these kernels have code for and this machine can run, the best first."""
    return tuple(_runtime.available_isas())


def active_isa() -> str:
    """The instruction set in use: the best available one, or the one that SELFATTN_ISA names."""
    return str(_runtime.active_isa())


def trim() -> None:
    """Gives the threads' scratch memory back to the system. The next call takes what it needs anew."""
    _runtime.trim()


def _checked(num_threads: int) -> int:
    count = num_threads if type(num_threads) is int else as_integer("num_threads", num_threads)
    if not 1 <= count <= MAX_THREADS:
        raise ValueError(f"num_threads={count} must be at least 1 and at most {MAX_THREADS}")
    return count


# ---- the default: what this process may use ----


def default_num_threads(
    environ: Mapping[str, str] = os.environ,
    *,
    cpus: int | None = None,
    cgroup_root: str = "/sys/fs/cgroup",
    cgroup_file: str = "/proc/self/cgroup",
) -> tuple[int, str]:
    """The least of SELFATTN_NUM_THREADS, OMP_NUM_THREADS, this process's CPUs, its CPU quota and MAX_THREADS;
    at least 1. Beside it, in words, the limit that it comes from.

    The quota is that of the control groups (Linux cgroups, version 1 or 2), rounded down: one thread too many
    is throttled while the others wait for it. Raises ValueError when SELFATTN_NUM_THREADS is not a positive
    integer; a malformed OMP_NUM_THREADS, which is not ours, is ignored.
    """
    limits: list[tuple[float, str]] = []
    ours = environ.get("SELFATTN_NUM_THREADS", "").strip()
    if ours:
        if not _is_positive(ours):
            raise ValueError(
                f"SELFATTN_NUM_THREADS={ours!r} must be an integer of at least 1; unset it or correct it"
            )
        limits.append((int(ours), f"SELFATTN_NUM_THREADS={ours}"))
    openmp = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # the outermost level
    if _is_positive(openmp):
        limits.append((int(openmp), f"OMP_NUM_THREADS={openmp}"))
    limits.append((cpus or _count_cpus(), "the processors that this process may use"))
    limits += [
        (quota, f"the control group's quota of {quota:g} processors")
        for quota in _cgroup_quotas(cgroup_root, cgroup_file)
    ]
    limits.append((MAX_THREADS, "the most that a call can use"))
    least, source = min(limits, key=lambda limit: limit[0])  # the first of equals
    return max(1, int(least)), source


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0


def _count_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quotas(root: str, file: str) -> Iterator[float]:
    """The CPUs' worth of time that each control group from this process's own up to the root allows."""
    for line in _read(file).splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":  # version 2
            for group in _ancestors(root, path):
                yield from _quota(_read(f"{group}/cpu.max").split())
        elif "cpu" in controllers.split(","):  # version 1, mounted under either name
            for mount in {controllers, "cpu"}:
                for group in _ancestors(f"{root}/{mount}", path):
                    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    yield from _quota([_read(f"{group}/{name}").strip() for name in files])


def _ancestors(root: str, path: str) -> Iterator[str]:
    """The directories from root/path up to root. Of a path outside our namespace (/../x), the root."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    for depth in range(len(parts), -1, -1):
        yield "/".join([root, *parts[:depth]])


def _quota(fields: list[str]) -> Iterator[float]:
    """[quota, period] in microseconds, when both are positive numbers: "max" and -1 mean no limit."""
    if len(fields) == 2 and all(map(_is_positive, fields)):
        yield int(fields[0]) / int(fields[1])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# ---- others that count threads ----


def use_openmp_threads(allow: bool = True) -> bool:
    """Lets calls between operations of PyTorch borrow the OpenMP threads that those leave awake, or stops it.

    Off by default; SELFATTN_OPENMP=1 in the environment turns it on when the library loads. On Linux only,
    with libgomp of GCC. To know whether a thread is awake, this reads memory of libgomp. Results do
    not change. Returns whether it is on now: never in a process that was forked beside such a library.
    """
    return bool(_runtime.use_openmp_threads(bool(allow)))


def register_with_threadpoolctl() -> None:
    """Lets threadpoolctl, if installed, see and limit our threads beside those of BLAS and OpenMP."""
    import threadpoolctl  # type: ignore[import-untyped, import-not-found, unused-ignore]

    class SelfattnController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = internal_api = "selfattn"
        filename_prefixes = ("runtime.",)
        check_symbols = ("selfattn_get_num_threads", "selfattn_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.selfattn_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.selfattn_set_num_threads(num_threads)

        def get_version(self) -> None:
            return None

    threadpoolctl.register(SelfattnController)


_runtime.set_num_threads(default_num_threads()[0])
