# SPDX-License-Identifier: Apache-2.0
"""Beside OpenMP, as PyTorch brings it: its threads help while they are awake, and nothing depends on them.

The number of threads tells who helped: a team of three makes three in all, workers of ours two more.
"""

import platform
import subprocess

import pytest
from support.processes import CALL, CASES, HELPERS, build_harness, needs_the_pool, run, run_harness

OPERATIONS = """
#include <omp.h>
#include <unistd.h>

void set(int num_threads)
{
    omp_set_num_threads(num_threads);
}

void operate(int num_threads)
{
    set(num_threads);
#pragma omp parallel
    usleep(100);
}

void operate_around(int num_threads, void (*call)(void))
{
#pragma omp parallel num_threads(num_threads)
#pragma omp master
    call();
}
"""
LIBRARY = """
import ctypes
omp = ctypes.CDLL("{path}")

others = os_threads() - 1  # of NumPy

def threads():
    return os_threads() - others

def settle(count):
    end = time.monotonic() + 20
    while threads() != count:
        assert time.monotonic() < end, threads()
        time.sleep(0.001)
"""

pytestmark = [
    *needs_the_pool,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="nobody lends there"),
]


@pytest.fixture(autouse=True)
def asked_for(monkeypatch):
    """Loans are off unless they are asked for."""
    monkeypatch.setenv("SELFATTN_OPENMP", "1")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("openmp")


@pytest.fixture(scope="module")
def library(directory):
    """Python code, after HELPERS, that loads a library with operations on OpenMP threads."""
    source, path = directory / "operations.c", directory / "operations.so"
    source.write_text(OPERATIONS)
    command = ["gcc", "-fopenmp", "-shared", "-fPIC", "-o", str(path), str(source)]
    if subprocess.run(command, timeout=120, check=False).returncode:
        pytest.skip("gcc has no -fopenmp here")
    return LIBRARY.format(path=path)


@pytest.fixture(scope="module")
def harness(directory, library):
    assert library
    return build_harness("openmp", directory, "-fopenmp", "-Wl,--wrap=sa_openmp_start")


# ---- the pool's own cases, between operations of a team of two ----


@pytest.mark.parametrize("case", CASES)
def test_the_pool_beside_a_team(harness, case):
    run_harness(harness, case, OMP_NUM_THREADS="2")


def test_a_job_for_four_takes_a_team_of_four(harness):
    run_harness(harness, "together", OMP_NUM_THREADS="4")


def test_a_team_that_may_sleep_leaves_an_idle_process_idle(harness):
    run_harness(harness, "idle", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")


# ---- in Python, where libraries come before us and after us ----


def run_after(library, code, **environ):
    """The code in a process that loads the library first."""
    return run(code, prelude=HELPERS + library + CALL, environ=environ)


@pytest.mark.parametrize("first", ["selfattn", "the library"])
def test_the_team_helps_whoever_was_loaded_first(library, first):
    code = """
    omp.operate(3)
    time.sleep(0.15)  # libraries are looked for ten times in a second
    omp.operate(3)
    assert threads() == 3
    after = compute(3)
    assert threads() == 3
    assert np.array_equal(after, compute(1))
    """
    prelude = HELPERS + (CALL + library if first == "selfattn" else library + CALL)
    run(code, prelude=prelude)


@pytest.mark.parametrize("asked", ["", "0", "yes"])
def test_loans_are_off_unless_they_are_asked_for(library, asked):
    code = """
    omp.operate(3)
    compute(3)
    print(threads())
    """
    assert run_after(library, code) == "3\n"
    assert run_after(library, code, SELFATTN_OPENMP=asked) == "5\n"


def test_a_call_turns_loans_on_and_off(library):
    code = """
    from selfattn.runtime import use_openmp_threads

    omp.operate(3)
    assert use_openmp_threads() is True
    compute(3)
    assert threads() == 3
    assert use_openmp_threads(False) is False
    omp.operate(3)
    compute(3)
    assert threads() == 5
    """
    run_after(library, code, SELFATTN_OPENMP="")


def test_a_thread_without_a_team_has_helpers_of_ours(library):
    code = """
    compute(3)
    assert threads() == 3  # two workers
    omp.operate(3)
    assert threads() == 5
    other = threading.Thread(target=compute, args=(4,))
    other.start()
    settle(6)  # and one more worker
    """
    run_after(library, code)


def test_a_number_of_threads_is_not_yet_a_team(library):
    """`import torch` says one. To start the threads is not ours: a forked child could not have any."""
    code = """
    omp.set(3)
    compute(3)
    assert threads() == 3
    in_child(lambda: omp.operate(3))
    """
    run_after(library, code)


def test_a_team_larger_than_the_job_is_left_alone(library):
    """All of it would have to be waited for."""
    code = """
    omp.operate(5)
    assert threads() == 5
    compute(3)
    assert threads() == 7
    """
    run_after(library, code)


def test_fewer_threads_than_promised(library):
    code = """
    omp.operate(3)
    assert np.array_equal(compute(4), compute(1))
    assert threads() == 4, threads()
    """
    run_after(library, code, OMP_THREAD_LIMIT="2")


def test_sleepers_are_left_asleep(library):
    code = """
    omp.operate(3)
    compute(3)
    assert threads() == 3
    time.sleep(0.05)
    compute(3)
    assert threads() == 5
    """
    run_after(library, code, OMP_WAIT_POLICY="passive")


def test_a_team_that_grows_and_shrinks(library):
    code = """
    before = compute(1)
    for threads in (3, 2, 4, 1, 5, 2) * 20:
        omp.operate(threads)
        assert np.array_equal(compute(3), before)
    """
    run_after(library, code)


def test_a_call_from_within_a_team(library):
    code = """
    omp.operate(3)
    expected, contexts = compute(3), []
    call = ctypes.CFUNCTYPE(None)(lambda: contexts.append(compute(3)))
    for i in range(20):
        omp.operate_around(1 + i % 3, call)
    assert len(contexts) == 20 and all(np.array_equal(expected, each) for each in contexts)
    """
    run_after(library, code)


@pytest.mark.parametrize("used", [True, False])
def test_a_forked_child_has_no_team(library, used):
    """OpenMP itself hangs there; also where the parent never called us."""
    code = f"""
    omp.operate(3)
    before = compute(3) if {used} else None
    def child():
        after = compute(3)
        assert os_threads() == 3
        assert before is None or np.array_equal(before, after)
    for _ in range(5):
        in_child(child)
        omp.operate(3)
        compute(3)
    """
    run_after(library, code)


def test_a_forked_child_that_loads_us(library):
    code = """
    omp.operate(3)
    def child():
        exec(call, globals())
        assert np.array_equal(compute(3), compute(1))
        assert os_threads() == 3
    in_child(child)
    """
    run(code, prelude=f"{HELPERS}{library}call = {CALL!r}\n")


def test_ctrl_c_in_a_call_that_the_team_helps(library):
    code = """
    q = np.ones((1, 16, 16384, 64), np.float32)
    def interrupt():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    omp.operate(3)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        selfattn.attention(q, q, q, num_threads=3)
    except KeyboardInterrupt:
        pass
    else:
        sys.exit("the call wasn't interrupted")
    settle(3)
    omp.operate(3)
    assert np.array_equal(compute(3), compute(1))
    """
    run_after(library, code)
