# SPDX-License-Identifier: Apache-2.0
"""The table and the JSON file of a run; plot.py draws it."""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfattn.bench import machine

Result = dict[str, Any]
Limits = dict[str, dict[str, float]]

OURS = "selfattn"
CONTENDERS = (OURS, "numpy", "torch", "onnxruntime", "openvino")
CELL = 15
MOST_MOVED = 0.03  # of the limit: what moved more is not published
OF_MOMENT = 0.9  # of the limit at its best moments, which whole rounds are to reach
AGAIN = 2  # times at most that a row is measured again because its limit moved
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
    """Of a row of a script, which has no kind, it is the FMA peak."""
    return limit_for(result.get("kind", ""), precision_of(result))


# ---- the rule: no row is published whose limit moved ----


class Moved(NamedTuple):
    """Between which values the limit of a row moved."""

    limit: Limit
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.limit.words} {self.low:.1f} to {self.high:.1f} {self.limit.unit}"


def limits_in_rounds(result: Result) -> list[float]:
    """The limit in every round of a row; empty if the limit was not measured beside the row."""
    measured = result.get(limit_of(result).measured, [])
    return [measured] if isinstance(measured, int | float) else list(measured)


def divisor(result: Result) -> float:
    """What a row's rates are divided by: the limit in its best round. A median would flatter."""
    return max(limits_in_rounds(result))


def moved(result: Result, best: float = 0.0, moment: float = 0.0) -> Moved | None:
    """How the limit moved in the rounds of a row, if by more than can be published; else None.

    Three things are looked at. The quartiles of the limit over the rounds lie within MOST_MOVED: the row's
    own figures are medians, which a few disturbed rounds do not change. The median lies within as much of
    `best`, the highest median of comparable rows. And it is OF_MOMENT of `moment`, what the limit was at its
    best moments: a limit that is low in all rounds, or in all rows, means a machine that gave less.
    """
    rounds = limits_in_rounds(result)
    if not rounds:
        return None
    low, middle, high = (float(x) for x in np.percentile(rounds, (25, 50, 75)))
    if low < (1 - MOST_MOVED) * high:
        return Moved(limit_of(result), low, high)
    if middle < max((1 - MOST_MOVED) * best, OF_MOMENT * moment):
        return Moved(limit_of(result), middle, max(best, moment))
    return None


def withheld(
    results: Sequence[Result], limits: Limits | None = None, threads: Any = None
) -> list[Moved | None]:
    """For each row of a table how its limit moved, or None for a row that can be published.

    Args:
        limits: by the number of threads, what the limits were at their best moments.
        threads: of rows that do not say it.
    """
    best: dict[Any, float] = {}
    for result in results:
        if limits_in_rounds(result) and not moved(result):
            middle = statistics.median(limits_in_rounds(result))
            best[comparable(result)] = max(middle, best.get(comparable(result), 0.0))
    causes = []
    for result in results:
        of_threads = (limits or {}).get(str(result.get("threads", threads)), {})
        moment = of_threads.get(limit_of(result).measured, 0.0)
        causes.append(moved(result, best.get(comparable(result), 0.0), moment))
    return causes


def comparable(result: Result) -> tuple[Limit, Any]:
    """Rows for which this is equal have the same limit."""
    return limit_of(result), result.get("threads")


def steadily(measure: Callable[[], Result], again: int = AGAIN) -> Result:
    """A row whose limit did not move; after `again` more attempts the one whose limit moved least."""
    attempts = [measure()]
    while moved(attempts[-1]) and len(attempts) <= again:
        attempts.append(measure())
    return min(attempts, key=movement) | {"attempts": len(attempts)}


def movement(result: Result) -> float:
    """By which part of itself the limit moved, between the quartiles of its rounds."""
    low, high = np.percentile(limits_in_rounds(result) or [1.0], (25, 75))
    return float((high - low) / high)


# ---- rows ----


def compare(result: Result) -> Result:
    """Adds every contender's rate and fraction of the limit, and the best peer's time over ours.

    The ratio is that of the medians; its quartiles are over the rounds, each with its own neighbours.
    """
    limit = limit_of(result)
    reachable = divisor(result)
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
    words = f"{what}, {precision_words(kind, precision)}{words_of_threads(threads)}"
    title = f"\n{words}: {unit}, median ± half the interquartile range"
    columns = f"{'shape':<{width(kind)}}" + "".join(f"{name:>{CELL}}" for name in names)
    limit = f"{'read':>9}{'of read':>9}" if kind == "decode" else f"{'peak':>9}{'of peak':>9}"
    return f"{title}\n{columns}{limit}  time of the best peer / ours"


def row(result: Result, names: Sequence[str]) -> str:
    """One line. Whoever wins, the shape is printed; a contender without a number says why it has none."""
    kind = result["kind"]
    cells = "".join(f"{cell(result, name):>{CELL}}" for name in names)
    ours = result["contenders"].get(OURS)
    limit, fraction = f"{divisor(result):.1f}", "-"
    if ours is not None:
        fraction = f"{of_limit(ours[limit_of(result).rate], divisor(result)):.2f}"
    marks = "".join(f"  {words}" for words in marked(result))
    return f"{label(result):<{width(kind)}}{cells}{limit:>9}{fraction:>9}  {ratio(result)}{marks}"


def of_limit(rate: float, limit: float) -> float:
    """The fraction of two numbers as they are printed, so that a table agrees with itself."""
    return round(rate, 1) / round(limit, 1)


def width(kind: str) -> int:
    """Of the column of shapes."""
    return 32 if kind == "decode" else 14


def ratio(result: Result) -> str:
    """`1.31 ±0.02 (torch)`, above 1 where we are faster; the spread is half the interquartile range."""
    if "best_peer" not in result:
        return "-"
    low, high = result.get("ratio_quartiles", (0.0, 0.0))  # files of the first format have none
    spread = f" ±{(high - low) / 2:.2f}" if "ratio_quartiles" in result else ""
    return f"{result['ratio_to_best_peer']:.2f}{spread} ({result['best_peer']})"


def cell(result: Result, name: str) -> str:
    if name in result["contenders"]:
        return f"{number(result, name)} ±{result['contenders'][name]['spread'] * 50:.0f} %"
    return "WRONG" if name in result["refused"] else "absent" if name in result["absent"] else "-"


def number(result: Result, name: str) -> str:
    """The median of a contender: milliseconds of an encoder, else its rate."""
    measured = result["contenders"][name]
    encoder = result["kind"] == "encoder"
    value = measured["median_seconds"] * 1e3 if encoder else measured[limit_of(result).rate]
    return f"{value:.{1 if not encoder else 2 if value < 100 else 0}f}"


def footnotes(results: Sequence[Result], limits: Limits | None = None) -> list[str]:
    """Who was absent or wrong, and which rows cannot be published."""
    notes = dict.fromkeys(absent_and_wrong(results))
    for result, cause in zip(results, withheld(results, limits), strict=True):
        if cause:
            notes[f"{place(result)}: {not_publishable(cause)}"] = None
        notes.update({f"{place(result)}: {words}": None for words in disturbed(result)})
    return list(notes)


def absent_and_wrong(results: Sequence[Result]) -> list[str]:
    """Each peer that could not take part, and the reason."""
    notes = dict.fromkeys(
        f"{name} is absent: {reason}" for result in results for name, reason in result["absent"].items()
    )
    for result in results:
        wrong = result["refused"].items()
        notes.update({f"{place(result)}: {name} is WRONG: {why}": None for name, why in wrong})
    return list(notes)


def place(result: Result) -> str:
    return f"{label(result)} on {words_of_threads(result['threads'])}"


def words_of_threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def not_publishable(cause: Moved) -> str:
    return f"{cause}: not publishable"


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
        "repeated": "rounds measured again, because the machine gave less than it can",
        "slow": "rounds measured although the machine gave less than it can",
    }
    return [f"{result[count]} {said}" for count, said in words.items() if result.get(count)]


def marked(result: Result) -> list[str]:
    """That the row's own limit moved, if it did, and how often the row was measured for that reason."""
    cause, attempts = moved(result), result.get("attempts", 1)
    words = [not_publishable(cause)] if cause else []
    return words + [f"measured {attempts} times"] * (attempts > 1)


def marks(result: Result) -> list[str]:
    """What a script prints after a row."""
    return [*marked(result), *disturbed(result)]


def write_measured(name: str, rows: Any, options: Namespace, *settings: str, **more: Any) -> None:
    """What a script measured, if --json asks for it, with these of its options and the machine."""
    if options.json:
        used = {setting: getattr(options, setting) for setting in settings}
        facts = machine.describe()
        if "threads" in used:
            facts["limits"] = {
                count: {PEAK.measured: machine.peak_gflops(int(count))}
                for count in str(used["threads"]).split(",")
            }
        write_json({name: rows, **more, "settings": used, "machine": facts}, options.json)


def write_json(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def provenance(machine: dict[str, Any]) -> str:
    """Two lines: the processor, the date and the commit, if there is one; the versions."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{machine['cpu']} ({machine['isa']}), {machine['date'][:10]}{commit}\n{versions}"
