"""The thread pool without Python: tests/c/pool_harness.c with csrc/pool.c, one case a process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    ROOT / "tests/c/pool_harness.c",
    *(ROOT / "csrc" / name for name in ("pool.c", "cores.c", "workspace.c")),
]
FLAGS = [
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Werror",
    "-DSELFATTN_FAIL_ALLOC",
    f"-I{ROOT / 'csrc'}",
]
CASES = [
    "sums",
    "order",
    "slots",
    "together",
    "nested",
    "callers",
    "cancel",
    "poll",
    "poll_reenters",
    "fork",
    "fork_in_poll",
    "no_threads",
    "no_memory",
    "trim",
    "idle",
    "signals",
    "num_threads",
]
SANITIZERS = {
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0:atexit_sleep_ms=0"},
    "address,undefined": {"ASAN_OPTIONS": "quarantine_size_mb=0:allocator_may_return_null=1"},
}

pytestmark = [
    pytest.mark.skipif(not SOURCES[1].exists(), reason="needs the source tree"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc"),
    pytest.mark.skipif(os.uname().sysname != "Linux", reason="reads /proc"),
]


def build(directory, *flags):
    program = directory / "pool"
    command = [
        "gcc",
        *FLAGS,
        *flags,
        *map(str, SOURCES),
        "-Wl,--wrap=pthread_create",
        "-pthread",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, timeout=120)
    return program


def run(program, case, **environ):
    process = subprocess.run(
        [program, case], env=os.environ | environ, timeout=60, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pool"))


@pytest.mark.parametrize("case", CASES)
def test_pool(harness, case):
    run(harness, case)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_pool_under_sanitizer(sanitizer, tmp_path):
    """pytest -k sanitizer"""
    try:
        program = build(tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    except subprocess.CalledProcessError:
        pytest.skip(f"gcc has no -fsanitize={sanitizer} here")
    for case in CASES:
        run(program, case, **SANITIZERS[sanitizer])
