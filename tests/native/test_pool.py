# SPDX-License-Identifier: Apache-2.0
"""The thread pool without Python: tests/c/pool_harness.c with csrc/runtime/pool.c, one case a process."""

import subprocess

import pytest
from support.processes import CASES, build_harness, needs_the_pool, run_harness

ALL_CASES = [*CASES, "no_threads", "idle", "signals", "num_threads"]
SANITIZERS = {
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0:atexit_sleep_ms=0"},
    "address,undefined": {"ASAN_OPTIONS": "quarantine_size_mb=0:allocator_may_return_null=1"},
}

pytestmark = needs_the_pool


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return build_harness("pool", tmp_path_factory.mktemp("pool"))


@pytest.mark.parametrize("case", ALL_CASES)
def test_pool(harness, case):
    run_harness(harness, case)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_pool_under_sanitizer(sanitizer, tmp_path):
    """pytest -k sanitizer"""
    try:
        program = build_harness("pool", tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    except subprocess.CalledProcessError:
        pytest.skip(f"gcc has no -fsanitize={sanitizer} here")
    for case in ALL_CASES:
        run_harness(program, case, **SANITIZERS[sanitizer])
