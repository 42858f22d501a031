# SPDX-License-Identifier: Apache-2.0
"""How many threads, and who says so; the pool among signals, forks and other threads of the process."""

import asyncio
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.processes import run

import selfattn
from selfattn import runtime

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


# ---- who says how many ----


@pytest.fixture
def eight_threads():
    """A known number for the process, put back afterwards."""
    before = runtime.get_num_threads()
    runtime.set_num_threads(8)
    yield
    runtime.set_num_threads(before)


@pytest.mark.usefixtures("eight_threads")
def test_the_argument_wins_over_the_context_and_the_context_over_the_process():
    assert runtime.get_num_threads() == runtime.resolve_num_threads(None) == 8
    with selfattn.threads(3):
        assert runtime.get_num_threads() == 3
        assert runtime.resolve_num_threads(5) == 5
        with selfattn.threads(np.int64(2)):
            assert runtime.get_num_threads() == 2
        runtime.set_num_threads(7)
        assert runtime.get_num_threads() == 3
    assert runtime.get_num_threads() == 7


@pytest.mark.usefixtures("eight_threads")
def test_an_error_ends_the_context():
    with pytest.raises(KeyError), selfattn.threads(3):
        raise KeyError
    assert runtime.get_num_threads() == 8


@pytest.mark.usefixtures("eight_threads")
def test_the_context_belongs_to_its_thread_and_to_its_task():
    seen = {}
    with selfattn.threads(3):
        other = threading.Thread(target=lambda: seen.update(thread=runtime.get_num_threads()))
        other.start()
        other.join()
    assert seen == {"thread": 8}

    async def task(n):
        with selfattn.threads(n):
            await asyncio.sleep(0.001)
            return runtime.get_num_threads()

    async def both():
        return await asyncio.gather(task(2), task(5))

    assert asyncio.run(both()) == [2, 5]


@pytest.mark.parametrize("bad", [0, -1, np.int64(0)])
@pytest.mark.parametrize("function", [runtime.set_num_threads, runtime.resolve_num_threads])
def test_less_than_one_thread_is_an_error(function, bad):
    with pytest.raises(ValueError, match=f"num_threads={bad} must be at least 1"):
        function(bad)


@pytest.mark.parametrize("bad", [1.0, "2", True, [1], np.array([1, 2])])
def test_a_number_of_threads_is_an_integer(bad):
    with pytest.raises(TypeError, match=f"must be an integer, not a {type(bad).__name__}"):
        runtime.resolve_num_threads(bad)
    with pytest.raises(TypeError, match="num_threads"), selfattn.threads(bad):
        pass


def test_instruction_sets():
    assert runtime.active_isa() in runtime.available_isas()
    assert "baseline" in runtime.available_isas()


# ---- the default ----


def make_groups(tmp_path, membership, files):
    """A fake /proc/self/cgroup and /sys/fs/cgroup."""
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (tmp_path / "self").write_text(membership + "\n")
    return {"cgroup_root": str(root), "cgroup_file": str(tmp_path / "self")}


V1 = "9:memory:/x\n4:cpu,cpuacct:/pod/box\n2:cpuacct,cpuset:/other"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {}, 16),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "399999 100000"}, 3),  # rounded down
        ("0::/", {"cpu.max": "50000 100000"}, 1),  # less than one CPU
        ("0::/", {"cpu.max": "6400000 100000"}, 16),  # more than there are
        (
            "0::/a/b/c",
            {"a/b/c/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "500000 100000"},
            2,
        ),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "700000 100000"}, 3),
        ("0::/host/only", {"cpu.max": "200000 100000"}, 2),  # a namespace that doesn't show our path
        ("0::/../../up", {"cpu.max": "200000 100000", "up/cpu.max": "100000 100000"}, 2),
        ("0::/", {"cpu.max": "garbage"}, 16),
        ("0::/", {"cpu.max": "0 100000"}, 16),
        ("0::/", {"cpu.max": "100000 0"}, 16),
        ("0::/", {"cpu.max": ""}, 16),
        ("nonsense", {"cpu.max": "200000 100000"}, 16),
        (V1, {"cpu/pod/box/cpu.cfs_quota_us": "300000", "cpu/pod/box/cpu.cfs_period_us": "100000"}, 3),
        (
            V1,
            {"cpu,cpuacct/pod/cpu.cfs_quota_us": "250000", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000"},
            2,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu/other/cpu.cfs_quota_us": "100000", "cpu/other/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_the_quota_of_the_control_groups(tmp_path, membership, files, expected):
    groups = make_groups(tmp_path, membership, files)
    assert runtime.default_num_threads({}, cpus=16, **groups)[0] == expected


def test_a_machine_without_control_groups(tmp_path):
    nowhere = {"cgroup_root": str(tmp_path / "no"), "cgroup_file": str(tmp_path / "none")}
    assert runtime.default_num_threads({}, cpus=16, **nowhere)[0] == 16
    assert 1 <= runtime.default_num_threads({}, **nowhere)[0] <= os.cpu_count()


@pytest.mark.parametrize(
    ("openmp", "expected"),
    [
        ("4", 4),
        ("4,2", 4),
        (" 3 ", 3),
        ("64", 16),
        ("0", 16),
        ("-1", 16),
        ("many", 16),
        ("", 16),
        ("9" * 50, 16),
    ],
)
def test_openmp_is_heard_and_its_garbage_ignored(tmp_path, openmp, expected):
    groups = make_groups(tmp_path, "0::/", {})
    assert runtime.default_num_threads({"OMP_NUM_THREADS": openmp}, cpus=16, **groups)[0] == expected


def test_our_own_variable(tmp_path):
    groups = make_groups(tmp_path, "0::/", {"cpu.max": "800000 100000"})
    for value, expected in {"3": 3, " 1 ": 1, "16": 8, "1000000": 8, "": 8}.items():
        assert runtime.default_num_threads({"SELFATTN_NUM_THREADS": value}, cpus=16, **groups)[0] == expected
    for value in ("0", "-2", "two", "1.5", "٣"):
        with pytest.raises(
            ValueError, match=f"SELFATTN_NUM_THREADS='{value}' must be an integer of at least 1"
        ):
            runtime.default_num_threads({"SELFATTN_NUM_THREADS": value}, cpus=16, **groups)


@pytest.mark.parametrize(
    ("environ", "cpus", "quota", "source"),
    [
        ({"OMP_NUM_THREADS": "2,4"}, 16, 3, "OMP_NUM_THREADS=2"),
        ({"SELFATTN_NUM_THREADS": "2"}, 16, 3, "SELFATTN_NUM_THREADS=2"),
        ({"SELFATTN_NUM_THREADS": "64", "OMP_NUM_THREADS": "5"}, 16, 2.5, "the control group's quota of 2.5"),
        ({"SELFATTN_NUM_THREADS": "64"}, 2, 3, "the processors that this process may use"),
        ({"SELFATTN_NUM_THREADS": "4096"}, 2000, 3000, "the most that a call can use"),
    ],
)
def test_the_default_names_the_limit_that_it_comes_from(tmp_path, environ, cpus, quota, source):
    groups = make_groups(tmp_path, "0::/", {"cpu.max": f"{int(quota * 1000)} 1000"})
    count, found = runtime.default_num_threads(environ, cpus=cpus, **groups)
    assert found.startswith(source)
    assert count == (1024 if cpus == 2000 else 2)


@pytest.mark.parametrize("count", [1025, 5000, 2**40])
def test_more_threads_than_the_pool_has_room_for(count):
    message = f"num_threads={count} must be at least 1 and at most 1024"
    with pytest.raises(ValueError, match=message):
        runtime.set_num_threads(count)
    with pytest.raises(ValueError, match=message), selfattn.threads(count):
        pass
    with pytest.raises(ValueError, match=message):
        runtime.resolve_num_threads(count)


# ---- the whole process; each in one of its own, so that nothing can hang or leak into another test ----


def test_the_environment_is_read_on_import():
    code = "print(selfattn.get_num_threads())"
    assert run(code, environ={"SELFATTN_NUM_THREADS": "1"}) == "1\n"
    assert run(code, environ={"OMP_NUM_THREADS": "1", "SELFATTN_NUM_THREADS": "100"}) == "1\n"
    command, environ = [sys.executable, "-c", "import selfattn"], os.environ | {"SELFATTN_NUM_THREADS": "all"}
    process = subprocess.run(command, env=environ, timeout=60, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "ValueError: SELFATTN_NUM_THREADS='all' must be" in process.stderr


@linux
def test_fork_after_use():
    run("""
    before = compute()
    def child():
        assert os_threads() == 1
        assert np.array_equal(compute(), before)
        assert os_threads() == 3
        grandchild = lambda: None if np.array_equal(compute(), before) else 1 / 0
        in_child(grandchild)
        assert np.array_equal(compute(1), before)
    in_child(child)
    time.sleep(0.01)  # now with the workers asleep
    in_child(child)
    assert np.array_equal(compute(), before)
    """)


@linux
def test_fork_while_another_thread_computes():
    run("""
    before = compute()
    stop = threading.Event()
    def work():
        while not stop.is_set():
            assert np.array_equal(compute(), before)
    other = threading.Thread(target=work)
    other.start()
    def child():
        assert np.array_equal(compute(), before)
        fresh = threading.Thread(target=compute)
        fresh.start()
        fresh.join()
    for _ in range(20):
        in_child(child)
    stop.set()
    other.join()
    """)


@linux
def test_a_pool_of_forked_processes():
    run("""
    import multiprocessing
    before = compute()
    with multiprocessing.get_context("fork").Pool(4) as pool:
        for after in pool.map(compute, [1, 2, 3, 4] * 4):
            assert np.array_equal(after, before)
    assert np.array_equal(compute(), before)
    """)


@linux
def test_many_python_threads_at_once():
    run("""
    sys.setswitchinterval(1e-5)
    before, most = compute(1), 0
    gate = threading.Barrier(8)
    wrong = []
    def work():
        global most
        gate.wait()
        for i in range(40):
            if not np.array_equal(compute(1 + i % 3), before):
                wrong.append(i)
            most = max(most, os_threads())
    workers = [threading.Thread(target=work) for _ in range(8)]
    base = os_threads()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert most <= base + 8 + 2, most  # the callers, and two helpers for num_threads=3
    """)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_ctrl_c_ends_a_long_call(num_threads, record_property):
    """The bound is generous, as tests share their machine; the time is printed."""
    output = run(f"""
    n = 16384
    q, k, v = (rng.standard_normal((1, 16, n, 64), dtype=np.float32) for _ in range(3))
    before = compute()
    sent = 0.0
    def interrupt():
        global sent
        time.sleep(0.3)
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        selfattn.attention(q, k, v, num_threads={num_threads})
    except KeyboardInterrupt:
        print(time.monotonic() - sent)
    else:
        sys.exit("the call wasn't interrupted")
    assert np.array_equal(compute(), before)
    """)
    record_property("seconds", float(output))
    print(f"KeyboardInterrupt {1000 * float(output):.1f} ms after the signal")
    assert float(output) < 1.0


@linux
def test_a_storm_of_signals_with_a_handler_that_calls_us():
    run("""
    before = compute()
    calls = 0
    def handler(*_):
        global calls
        calls += 1
        assert np.array_equal(compute(2), before)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    end = time.monotonic() + 1
    big = [np.repeat(array, 8, axis=1) for array in (query, key, value)]
    expected = np.repeat(before, 8, axis=1)
    while time.monotonic() < end:
        assert np.array_equal(selfattn.attention(*big, num_threads=2), expected)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert calls > 5, calls
    """)


@linux
def test_a_caller_with_a_small_stack():
    run("""
    before = compute()
    threading.stack_size(64 << 10)
    results = []
    small = threading.Thread(target=lambda: results.extend([compute(), compute(1)]))
    small.start()
    small.join()
    assert all(np.array_equal(result, before) for result in results) and len(results) == 2
    """)


def test_the_process_ends_while_workers_and_callers_live():
    run("compute()")
    run("""
    def work():
        while True:
            compute()
    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
    """)


@linux
def test_trim_gives_memory_back_and_the_next_call_works():
    run("""
    before = compute()
    selfattn.trim()
    assert np.array_equal(compute(), before)
    """)


def test_threadpoolctl_sees_our_threads():
    pytest.importorskip("threadpoolctl")
    run("""
    import threadpoolctl
    from selfattn.runtime import register_with_threadpoolctl
    selfattn.set_num_threads(4)
    register_with_threadpoolctl()
    ours = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "selfattn"]
    assert [pool["num_threads"] for pool in ours] == [4], ours
    with threadpoolctl.threadpool_limits(1):
        assert selfattn.get_num_threads() == 1
    assert selfattn.get_num_threads() == 4
    """)
