# SPDX-License-Identifier: Apache-2.0
"""A run of the benchmark: which workloads, who competes, verify, measure, report."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfattn.bench import decode, encoders, machine, peers, report
from selfattn.bench.options import CACHES, PEERS, SUITES, suite_of
from selfattn.bench.random_model import RANDOM_MODELS
from selfattn.bench.timing import (
    PATIENCE,
    Choice,
    Watch,
    WrongResultError,
    choose,
    interleave,
    rough_seconds,
    summarize,
    wait_until_idle,
)
from selfattn.bench.workloads import (
    attention_workload,
    encoder_workload,
    model_directory,
    sweep_workload,
)

CONTENDERS: dict[str, dict[str, Callable[..., Any]]] = {
    "operator": peers.OPERATOR,
    "decode": decode.DECODE,
    "encoder": encoders.ENCODER,
    "sweep": peers.OPERATOR,
}
SHAPES = {
    "operator": (
        "1x12x128x64",
        "8x12x128x64",
        "1x12x512x64",
        "1x12x2048x64",
        "1x8x4096x64",
        "1x8x2048x128",
        "32x12x32x32",
    ),
    "decode": ("1x32x8x4096x128", "8x32x8x1024x128", "1x8x8x16384x64"),
    "encoder": ("1x10", "1x128", "32x128", "8x256", "ragged256"),
    "sweep": tuple(str(2**power) for power in range(4, 15)),
}
RANDOM_SHAPES = ("1x10", "1x128", "8x256")  # of the encoder, if its weights are random
SMOKE_SHAPES = {
    "operator": ("1x2x32x16", "2x3x48x32"),
    "decode": ("2x4x2x40x16",),
    "encoder": ("2x8", "ragged4"),
    "sweep": ("16", "64"),
}
BY_PRECISION = ("operator", "encoder", "sweep")
DESCRIBED = ("queries", "dtype", "precision", "random_model", "bytes", "copies")  # of those that have it
LARGE = ("arrays", "caches", "batches", "packed")  # what a workload makes when it is asked, and anew


def run(options: Namespace) -> list[str]:
    """Prints and writes what was measured; returns where selfattn itself was absent or wrong.

    Args:
        options: what `options.add_arguments` parses, after `complete`.

    ValueError, ImportError or OSError, before anything is measured, for a shape that cannot be.
    """
    workloads = list(chosen_workloads(options))
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "settings": {"rounds": options.rounds, "min_time": options.min_time},
        "results": [],
    }
    print(report.provenance(document["machine"]))
    warn(document["machine"])
    for threads in options.threads:
        print(f"\n{limits(document, threads, options.precision)}")
        speed = partial(machine.pace, machine.multiply_adds(threads))
        watch = Watch(speed, patience=0 if options.smoke else PATIENCE)
        for suite in options.suites:
            of_suite = [workload for workload in workloads if workload.kind == suite]
            run_suite(suite, of_suite, threads, options, document["results"], watch)
    print("", *report.footnotes(document["results"], document["machine"]["limits"]), sep="\n")
    write(document, options)
    lost = [result for result in document["results"] if report.OURS not in result["contenders"]]
    return [report.place(result) for result in lost]


def complete(options: Namespace) -> None:
    """Fills in what was left out; ValueError when options do not fit together, ImportError or OSError when
    they need what is not there.
    """
    smoke = options.smoke
    options.rounds = options.rounds or (2 if smoke else 9)
    options.min_time = options.min_time or (0.005 if smoke else 0.05)
    options.threads = options.threads or [1]
    options.queries = options.queries or [1]
    options.vs = options.vs if options.vs is not None else [] if smoke else list(PEERS)
    options.precision = options.precision or "float32"
    options.suites = chosen_suites(options)
    if options.precision == "bfloat16" and find_spec("ml_dtypes") is None:
        raise ModuleNotFoundError("--precision bfloat16 needs ml_dtypes: pip install ml_dtypes")
    if options.caches is None:
        options.caches = [dtype for dtype in CACHES if dtype != "bfloat16" or find_spec("ml_dtypes")]
    elif "bfloat16" in options.caches and find_spec("ml_dtypes") is None:
        raise ModuleNotFoundError("bfloat16 caches need ml_dtypes: pip install ml_dtypes")
    for path in filter(None, (options.json, options.plot)):
        require_writable(path)
    if options.plot and find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib: pip install selfattn[view]")


def chosen_suites(options: Namespace) -> list[str]:
    """Those that are named, or that the shapes are for; else all that can run."""
    named = options.suites or [suite_of(shape) for shape in options.shapes or []]
    suites = [suite for suite in SUITES if suite in named]
    for shape in options.shapes or []:
        if suite_of(shape) not in suites:
            raise ValueError(f"--shapes {shape} is for {suite_of(shape)}, not for {' '.join(suites)}")
    possible = SUITES if options.precision == "float32" else BY_PRECISION
    if others := [suite for suite in suites if suite not in possible]:
        raise ValueError(f"--precision is for {', '.join(possible)}, not for {' '.join(others)}")
    return suites or [suite for suite in possible if suite != "encoder" or encoder_can_run(options.model)]


def encoder_can_run(model: Path | None) -> bool:
    """Of suites that nobody named, one that cannot run is left out, and said to be."""
    try:
        model_directory(model)
    except ImportError as error:
        print(f"encoder is left out: {error}", file=sys.stderr)
        return False
    return True


def require_writable(path: Path) -> None:
    """Notices a place that cannot be written before the work and not after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written")


def chosen_workloads(options: Namespace) -> Iterator[Any]:
    shapes = options.shapes or [shape for suite in options.suites for shape in default_shapes(suite, options)]
    model = model_directory(options.model) if "encoder" in options.suites else None
    for shape in shapes:
        if (suite := suite_of(shape)) == "decode":
            for dtype in options.caches:
                for queries in options.queries:
                    yield decode.decode_workload(shape, queries, dtype)
        elif suite != "encoder":
            make = attention_workload if suite == "operator" else sweep_workload
            yield make(shape, options.precision)
        elif model is not None:
            yield encoder_workload(shape, model, options.precision)


def default_shapes(suite: str, options: Namespace) -> tuple[str, ...]:
    if suite == "encoder" and str(options.model) in RANDOM_MODELS:
        return RANDOM_SHAPES[:1] if options.smoke else RANDOM_SHAPES
    return (SMOKE_SHAPES if options.smoke else SHAPES)[suite]


def warn(facts: dict[str, Any]) -> None:
    load = facts["load_average"]
    if load is not None and load > 0.5:
        print(f"warning: something else runs here (load average {load:.1f})", file=sys.stderr)
    if core := os.environ.get("OPENBLAS_CORETYPE"):
        print(f"warning: OPENBLAS_CORETYPE={core} may slow NumPy down; unset it", file=sys.stderr)


def limits(document: dict[str, Any], threads: int, precision: str) -> str:
    """Measures what the machine itself can do with so many threads."""
    those = dict.fromkeys((report.PEAK, report.limit_for("operator", precision), report.READ))
    measured = {limit: measured_limit(limit, threads) for limit in those}
    document["machine"].setdefault("limits", {})[str(threads)] = {
        limit.measured: value for limit, value in measured.items()
    }
    words = (f"{limit.words} {value:.1f} {limit.unit}" for limit, value in measured.items())
    return f"{report.words_of_threads(threads)}, at best moments: {', '.join(words)}"


def run_suite(
    suite: str,
    workloads: list[Any],
    threads: int,
    options: Namespace,
    results: list[report.Result],
    watch: Watch,
) -> None:
    names = [name for name in CONTENDERS[suite] if name == report.OURS or name in options.vs]
    if workloads:
        print(report.header(suite, threads, names, options.precision))
    for workload in workloads:
        result = measure(workload, names, threads, options, watch)
        results.append(result)
        print(report.row(result, names), flush=True)
        for name in LARGE:  # the arrays of all shapes together would fill memory
            vars(workload).pop(name, None)


def measure(workload: Any, names: list[str], threads: int, options: Namespace, watch: Watch) -> report.Result:
    """One row: verify and choose, then time, and the limit as if it were one of them.

    A row whose limit moved is timed again, a few times at most, if the watch has any patience.
    """
    choices, absent, refused = chosen(workload, names, threads, options.min_time)
    limit = report.limit_for(workload.kind, getattr(workload, "precision", "float32"))
    work = limit_work(limit, threads)
    done = work()
    yardstick = {limit.measured: Choice("", work, 0.0, rough_seconds(work, options.min_time), {})}
    named = {name: getattr(workload, name) for name in DESCRIBED if hasattr(workload, name)}

    def timed() -> report.Result:
        seconds = interleave(choices | yardstick, options.rounds, options.min_time, watch)
        return {
            "kind": workload.kind,
            "shape": workload.name,
            "threads": threads,
            "flops": workload.flops,
            "tolerance": workload.tolerance,
            limit.measured: [done / each / 1e9 for each in seconds[limit.measured]],
            "contenders": {name: describe(choices[name]) | summarize(seconds[name]) for name in choices},
            **watch.counts(),
            "absent": absent,
            "refused": refused,
            **named,
        }

    return report.compare(report.steadily(timed, report.AGAIN if watch.patience else 0))


def chosen(
    workload: Any, names: list[str], threads: int, min_time: float
) -> tuple[dict[str, Choice], dict[str, str], dict[str, str]]:
    """Of the contenders those that take part, the absent and the wrong, both with the reason."""
    choices: dict[str, Choice] = {}
    absent: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name in names:
        try:
            variants = CONTENDERS[workload.kind][name](workload, threads)
            choices[name] = choose(variants, workload, min_time)
        except (ImportError, peers.PrecisionError) as error:
            absent[name] = str(error)
        except peers.UnsupportedError:
            continue
        except WrongResultError as error:
            wrong[name] = str(error)
    return choices, absent, wrong


def describe(choice: Choice) -> dict[str, Any]:
    return {"variant": choice.variant, "max_error": choice.error, "rejected_variants": choice.rejected}


def limit_work(limit: report.Limit, threads: int) -> Callable[[], float]:
    """A call that does nothing but what the limit is about, and returns how much."""
    if limit is report.READ:
        return machine.reads(threads)
    return machine.multiply_adds(threads, limit is report.BFLOAT16_PEAK)


def measured_limit(limit: report.Limit, threads: int) -> float:
    """At its best."""
    wait_until_idle()
    if limit is report.READ:
        return machine.read_bandwidth(threads)
    return machine.peak_gflops(threads, bfloat16=limit is report.BFLOAT16_PEAK)


def write(document: dict[str, Any], options: Namespace) -> None:
    if options.json:
        report.write_json(document, options.json)
    if options.plot and any(result["contenders"] for result in document["results"]):
        from selfattn.bench.plot import plot

        print("drawn:", *plot(document, options.plot))
