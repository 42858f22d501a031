# SPDX-License-Identifier: Apache-2.0
"""What runs in a process of its own, so that nothing can hang or leak into another test.

Python code, and C programs that drive csrc/runtime/pool.c.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HELPERS = """
import os, signal, sys, threading, time
import numpy as np

def os_threads():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

def wait(child):
    end = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < end, "the child hangs"
        time.sleep(0.001)
    assert done[1] == 0, done

def in_child(function):
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    wait(child)
"""
CALL = """
import selfattn

rng = np.random.default_rng(5)
query, key, value = (rng.standard_normal((1, 4, 300, 32), dtype=np.float32) for _ in range(3))

def compute(num_threads=3):
    return selfattn.attention(query, key, value, num_threads=num_threads)
"""


def run(code, *, prelude=HELPERS + CALL, timeout=60, environ=None):
    """Runs the code after the prelude; returns what it printed."""
    process = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            prelude + textwrap.dedent(code),
        ],
        env=os.environ | (environ or {}),
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


# ---- the pool without Python ----

RUNTIME = ("pool", "default_threads", "cores", "workspace")
POOL = [*(ROOT / f"csrc/runtime/{name}.c" for name in RUNTIME), ROOT / "csrc/openmp/openmp_loan.c"]
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread"]

LINKED = ["-Wl,--wrap=pthread_create", "-ldl"]
CASES = [  # of the harnesses, whoever helps
    "sums",
    "order",
    "shares",
    "late",
    "slots",
    "together",
    "nested",
    "callers",
    "cancel",
    "poll",
    "poll_reenters",
    "fork",
    "fork_in_poll",
    "no_memory",
    "trim",
]

needs_the_pool = [
    pytest.mark.skipif(not POOL[0].exists(), reason="needs the source tree"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc"),
    pytest.mark.skipif(os.uname().sysname != "Linux", reason="reads /proc"),
]


def build_harness(name, directory, *flags):
    """tests/c/{name}_harness.c with the pool; CalledProcessError where gcc refuses."""
    program = directory / name
    sources = map(str, [ROOT / f"tests/c/{name}_harness.c", *POOL])
    command = ["gcc", *FLAGS, "-DSELFATTN_FAIL_ALLOC", f"-I{ROOT / 'csrc'}", *flags, *sources]
    subprocess.run([*command, *LINKED, "-o", str(program)], check=True, timeout=120)
    return program


def run_harness(program, case, **environ):
    """Without what is preloaded: a sanitizer for Python would keep the memory that a case gives back."""
    environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | environ
    process = subprocess.run(
        [program, case], env=environ, timeout=60, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
