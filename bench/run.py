"""selfattn beside its peers: `python bench/run.py --help`, and README.md here for what the numbers mean."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# A core type forced on OpenBLAS would slow NumPy down; it is read when NumPy is imported.
os.environ.pop("OPENBLAS_CORETYPE", None)

import encoders
import machine
import peers
import report
from timing import Choice, WrongResultError, choose, interleave, summarize, wait_until_idle
from workloads import SHAPES, SMOKE_SHAPES, parse_shape

CONTENDERS: dict[str, dict[str, Callable[..., Any]]] = {
    "operator": peers.OPERATOR,
    "encoder": encoders.ENCODER,
}


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when selfattn itself is absent or wrong somewhere."""
    options = parse(arguments)
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "settings": {"rounds": options.rounds, "min_time": options.min_time},
        "results": [],
    }
    print(report.provenance(document["machine"]))
    warn_if_busy(document["machine"])
    for threads in options.threads:
        print(f"\n{limits(document, threads)}")
        for kind in CONTENDERS:
            run_kind(kind, threads, options, document["results"])
    print("", *report.footnotes(document["results"]), sep="\n")
    if options.json:
        report.write_json(document, options.json)
    if options.plot and any(result["contenders"] for result in document["results"]):
        report.plot(document, options.plot)
    return int(any(report.OURS not in result["contenders"] for result in document["results"]))


def limits(document: dict[str, Any], threads: int) -> str:
    """Measures what the machine itself can do with so many threads."""
    bandwidth = machine.read_bandwidth(threads)
    peak = machine.peak_gflops(threads)
    document["machine"].setdefault("limits", {})[str(threads)] = {
        "peak_gflops": peak,
        "read_gigabytes_per_second": bandwidth,
    }
    return f"{threads} thread(s): FMA peak {peak:.1f} GFLOP/s, read bandwidth {bandwidth:.1f} GB/s"


def run_kind(kind: str, threads: int, options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    names = [name for name in CONTENDERS[kind] if name in options.contenders]
    shapes = [workload for workload in options.workloads if workload.kind == kind]
    if shapes:
        print(report.header(kind, threads, names))
    for workload in shapes:
        result = measure(workload, names, threads, options)
        results.append(result)
        print(report.row(result, names), flush=True)
        forget(workload)


def measure(workload: Any, names: list[str], threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: verify and choose, then time between two measurements of the peak."""
    choices: dict[str, Choice] = {}
    absent: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            variants = CONTENDERS[workload.kind][name](workload, threads)
            choices[name] = choose(variants, workload, options.min_time)
        except ImportError as error:
            absent[name] = str(error)
        except WrongResultError as error:
            refused[name] = str(error)
    before = steady_peak(threads)
    seconds = interleave(choices, options.rounds, options.min_time)
    after = steady_peak(threads)
    return report.compare(
        {
            "kind": workload.kind,
            "shape": workload.name,
            "threads": threads,
            "flops": workload.flops,
            "tolerance": workload.tolerance,
            "peak_gflops": [before, after],
            "contenders": {name: describe(choices[name]) | summarize(seconds[name]) for name in choices},
            "absent": absent,
            "refused": refused,
        }
    )


def describe(choice: Choice) -> dict[str, Any]:
    return {"variant": choice.variant, "max_error": choice.error, "rejected_variants": choice.rejected}


def steady_peak(threads: int) -> float:
    wait_until_idle()
    return machine.peak_gflops(threads)


def forget(workload: Any) -> None:
    """Drops the arrays of a workload: inputs and float64 results of all shapes together fill memory."""
    for name in ("arrays", "expected", "batches", "packed"):
        vars(workload).pop(name, None)


def warn_if_busy(facts: dict[str, Any]) -> None:
    load = facts["load_average"]
    if load is not None and load > 0.5:
        print(f"warning: something else runs here (load average {load:.1f})", file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time selfattn beside its peers, each verified first.")
    peer_names = [name for name in peers.OPERATOR if name != report.OURS]
    parser.add_argument("kinds", nargs="*", metavar="operator|encoder", help="what to run (default: both)")
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2 (default: 1)")
    parser.add_argument("--shapes", help="comma-separated BxHxLxD, BxL token ids, raggedN sentences")
    parser.add_argument("--vs", help=f"peers (default: {','.join(peer_names)}; with --smoke: none)")
    parser.add_argument("--model", type=Path, help="directory of a BERT model (default: MiniLM, installed)")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, two rounds: does it run?")
    parser.add_argument("--rounds", type=positive(int), help="interleaved rounds (default: 9)")
    parser.add_argument("--min-time", type=positive(float), help="seconds of each turn (default: 0.05)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the fractions of peak to FILE")
    options = parser.parse_args(arguments)
    try:
        complete(options, peer_names)
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
    return options


def complete(options: argparse.Namespace, peer_names: list[str]) -> None:
    """Fills in what depends on other options: threads, contenders, workloads."""
    smoke = options.smoke
    options.rounds = options.rounds or (2 if smoke else 9)
    options.min_time = options.min_time or (0.005 if smoke else 0.05)
    options.threads = [positive(int)(text) for text in options.threads.split(",")]
    kinds = options.kinds or (["operator"] if smoke and not options.shapes else list(SHAPES))
    chosen = options.vs if options.vs is not None else "" if smoke else ",".join(peer_names)
    vs = [name for name in chosen.split(",") if name]
    require_known(kinds, list(SHAPES))
    require_known(vs, peer_names)
    options.contenders = {report.OURS, *vs}
    defaults = [shape for kind in kinds for shape in (SMOKE_SHAPES if smoke else SHAPES)[kind]]
    shapes = options.shapes.split(",") if options.shapes else defaults
    workloads = [parse_shape(shape, options.model) for shape in shapes]
    options.workloads = [workload for workload in workloads if workload.kind in kinds]
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing and any(workload.kind == "encoder" for workload in options.workloads):
        raise ValueError(f"encoders are verified against PyTorch: install {' and '.join(missing)}")


def require_known(names: list[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")


def positive(number: type) -> Callable[[str], Any]:
    def parse_number(text: str) -> Any:
        value = number(text)
        if not value > 0:
            raise ValueError(f"{text} is not above 0")
        return value

    return parse_number


if __name__ == "__main__":
    sys.exit(main())
