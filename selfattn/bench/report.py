"""The table and the JSON file of a run; plot.py draws it."""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfattn.bench import machine

Result = dict[str, Any]

OURS = "selfattn"
CONTENDERS = (OURS, "numpy", "torch", "onnxruntime", "openvino")
CELL = 15
SWEEP = "16384 tokens at head_dim 64"
DECODE_SHAPE = "{shape} q{queries} {dtype}"


class Limit(NamedTuple):
    """What a kind of workload is measured against; names of fields in its results, and words."""

    work: str  # of one call
    measured: str  # the limit itself, in every round of the row
    rate: str
    fraction: str
    unit: str
    words: str


PEAK = Limit("flops", "peak_gflops", "gflops", "fraction_of_peak", "GFLOP/s", "FMA peak")
BFLOAT16_PEAK = PEAK._replace(measured="bfloat16_peak_gflops", words="bfloat16 peak")
READ = Limit(
    "bytes",
    "read_gigabytes_per_second",
    "gigabytes_per_second",
    "fraction_of_read_bandwidth",
    "GB/s",
    "read bandwidth",
)


def precision_of(result: Result) -> str:
    """Of the products: float32 in every row of decode and of files that say nothing of it."""
    return result.get("precision") or "float32"


def limit_for(kind: str, precision: str = "float32") -> Limit:
    if kind == "decode":
        return READ
    return BFLOAT16_PEAK if precision == "bfloat16" else PEAK


def limit_of(result: Result) -> Limit:
    return limit_for(result["kind"], precision_of(result))


def compare(result: Result) -> Result:
    """Adds every contender's rate and fraction of the limit, and the best peer's time over ours.

    The ratio is that of the medians; its quartiles are over the rounds, each with its own neighbours.
    """
    limit = limit_of(result)
    reachable = max(result[limit.measured])  # the median of a restless machine would flatter
    contenders = result["contenders"]
    for measured in contenders.values():
        measured[limit.rate] = result[limit.work] / measured["median_seconds"] / 1e9
        measured[limit.fraction] = measured[limit.rate] / reachable
    peers = {name: measured["median_seconds"] for name, measured in contenders.items() if name != OURS}
    if peers and OURS in contenders:
        best = min(peers, key=peers.__getitem__)
        result["best_peer"] = best
        result["ratio_to_best_peer"] = peers[best] / contenders[OURS]["median_seconds"]
        theirs, ours = (np.array(contenders[name]["round_seconds"]) for name in (best, OURS))
        result["ratio_quartiles"] = [float(x) for x in np.percentile(theirs / ours, (25, 75))]
    return result


def label(result: Result) -> str:
    """The shape, and what else tells a row from its neighbours."""
    return DECODE_SHAPE.format(**result) if result["kind"] == "decode" else str(result["shape"])


def table_name(result: Result) -> str:
    """The suite, with the model and the precision where they are not the usual ones."""
    precision = precision_of(result)
    others = [result.get("random_model"), precision if precision != "float32" else None]
    return "-".join([result["kind"], *filter(None, others)])


def precision_words(kind: str, precision: str) -> str:
    """Before what else a table says of itself; each row of decode has its own."""
    return "" if kind == "decode" else f"{precision}, "


def header(kind: str, threads: int, names: Sequence[str], precision: str = "float32") -> str:
    unit = "milliseconds" if kind == "encoder" else limit_for(kind, precision).unit
    what = f"{kind} over the length of the sequences, {SWEEP}" if kind == "sweep" else kind
    words = f"{what}, {precision_words(kind, precision)}{threads} thread(s)"
    title = f"\n{words}: {unit}, median ± half the interquartile range"
    columns = f"{'shape':<{width(kind)}}" + "".join(f"{name:>{CELL}}" for name in names)
    return (
        f"{title}\n{columns}{'of read' if kind == 'decode' else 'of peak':>9}  time of the best peer / ours"
    )


def row(result: Result, names: Sequence[str]) -> str:
    """One line. Whoever wins, the shape is printed; a contender without a number says why it has none."""
    kind = result["kind"]
    cells = "".join(f"{cell(result, name):>{CELL}}" for name in names)
    part = fraction_of_limit(result)
    fraction = "-" if part is None else f"{part:.2f}"
    return f"{label(result):<{width(kind)}}{cells}{fraction:>9}  {ratio(result)}"


def width(kind: str) -> int:
    """Of the column of shapes."""
    return 32 if kind == "decode" else 14


def fraction_of_limit(result: Result) -> float | None:
    """Ours, if we were measured."""
    ours = result["contenders"].get(OURS)
    return None if ours is None else float(ours[limit_of(result).fraction])


def ratio(result: Result) -> str:
    """`1.31 ±0.02 (torch)`, above 1 where we are faster; the spread is half the interquartile range."""
    if "best_peer" not in result:
        return "-"
    low, high = result.get("ratio_quartiles", (0.0, 0.0))  # files of the first format have none
    spread = f" ±{(high - low) / 2:.2f}" if "ratio_quartiles" in result else ""
    return f"{result['ratio_to_best_peer']:.2f}{spread} ({result['best_peer']})"


def cell(result: Result, name: str) -> str:
    if name in result["contenders"]:
        measured = result["contenders"][name]
        encoder = result["kind"] == "encoder"
        number = measured["median_seconds"] * 1e3 if encoder else measured[limit_of(result).rate]
        digits = 1 if not encoder else 2 if number < 100 else 0
        return f"{number:.{digits}f} ±{measured['spread'] * 50:.0f} %"
    return "WRONG" if name in result["refused"] else "absent" if name in result["absent"] else "-"


def footnotes(results: Sequence[Result]) -> list[str]:
    """Who was absent or refused, and where the machine was not steady."""
    notes = dict.fromkeys(
        f"{name} is absent: {reason}" for result in results for name, reason in result["absent"].items()
    )
    for result in results:
        place = f"{label(result)}, {result['threads']} thread(s)"
        notes.update({f"{place}: {name} is WRONG: {why}": None for name, why in result["refused"].items()})
        limit = limit_of(result)
        low, high = np.percentile(result[limit.measured], (25, 75))
        if high - low > 0.05 * high:
            moved = f"the {limit.words} was between {low:.0f} and {high:.0f} {limit.unit}"
            notes[f"{place}: {moved}, run it again"] = None
        notes.update({f"{place}: {words}": None for words in disturbed(result)})
    return list(notes)


def over_rounds(ratios: Iterable[float]) -> Result:
    """The median of a ratio over the rounds, and its quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": middle, "quartiles": [low, high]}


def spread(result: Result) -> str:
    """Such a ratio, with half its interquartile range."""
    low, high = result["quartiles"]
    return f"{result['ratio']:.2f} ±{(high - low) / 2:.2f}"


def beside_bar(result: Result) -> str:
    """The same beside what it is meant to reach, if anything."""
    if result["bar"] is None:
        return spread(result)
    below = "  BELOW" if result["ratio"] < result["bar"] else ""
    return f"{spread(result)}  at least {result['bar']:.2f}{below}"


def disturbed(result: Result) -> list[str]:
    """What a watch did, in words; files of before there was one say nothing."""
    words = {
        "repeated": "measured again, the machine gave less than it can",
        "slow": "measured although the machine gave less than it can",
    }
    return [f"{result[count]} x {said}" for count, said in words.items() if result.get(count)]


def write_measured(name: str, rows: Any, options: Namespace, *settings: str, **more: Any) -> None:
    """What a script measured, if --json asks for it, with these of its options and the machine."""
    if options.json:
        used = {setting: getattr(options, setting) for setting in settings}
        write_json({name: rows, **more, "settings": used, "machine": machine.describe()}, options.json)


def write_json(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def provenance(machine: dict[str, Any]) -> str:
    """Two lines: the processor, the date and the commit, if there is one; the versions."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{machine['cpu']} ({machine['isa']}), {machine['date'][:10]}{commit}\n{versions}"
