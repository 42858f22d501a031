# SPDX-License-Identifier: Apache-2.0
"""Puts what a benchmark wrote into the tables of the pages: `python bench/table.py FILE.json ...`.

Each FILE is what `selfattn bench` or another script here wrote with --json. The text between
`<!-- bench:KIND -->` and `<!-- /bench -->` is replaced, with the machine and the command of the measurement
beside the numbers. What no FILE holds stays as it is. README's summary needs operator and encoder together.

A row whose limit moved by more than 3 % while it was measured is not published (`report.moved` is the rule):
nothing is written, and the command that measures it again is printed. With --leave-out the other rows are
published, and a sentence under the table names those that are not.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfattn.bench import report
from selfattn.bench.options import CACHES
from selfattn.bench.run import CONTENDERS, RANDOM_SHAPES, SHAPES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]
SUMMARY = {"operator": ("8x12x128x64", "1x12x2048x64"), "encoder": ("1x128", "32x128", "ragged256")}
HEAD_DIM = 64  # of growth.py

Row = dict[str, Any]


class MovedError(ValueError):
    """The limit of a row moved, so it cannot be published."""


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 for a file or a page that cannot be used, or a row that cannot be published."""
    parser = argparse.ArgumentParser(description="Put measurements into the pages' tables.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what --json wrote")
    parser.add_argument("--pages", nargs="+", type=Path, default=PAGES, metavar="FILE.md")
    parser.add_argument(
        "--leave-out", action="store_true", help="publish without the rows whose peak moved, and name them"
    )
    options = parser.parse_args(arguments)
    try:
        texts = [page.read_text(encoding="utf-8") for page in options.pages]
        for kind, table in all_tables(options.files, options.leave_out).items():
            texts = replace(texts, kind, table)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for page, text in zip(options.pages, texts, strict=True):
        page.write_text(text, encoding="utf-8")
    return 0


def replace(texts: list[str], kind: str, table: str) -> list[str]:
    """The pages with what stands between the markers of this kind, in one of them, replaced by the table."""
    pattern = re.compile(rf"(<!-- bench:{kind} -->\n).*?(<!-- /bench -->)", re.DOTALL)
    found = sum(len(pattern.findall(text)) for text in texts)
    if found != 1:
        raise ValueError(f"there are {found} places <!-- bench:{kind} --> ... <!-- /bench -->; it needs 1")
    return [pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text) for text in texts]


def all_tables(files: list[Path], leave_out: bool) -> dict[str, str]:
    """The Markdown of each kind of measurement in the files; MovedError that names every row that moved."""
    tables, problems = {}, []
    sources = {source.kind: source for path in files for source in sources_of(path, leave_out)}
    for kind, source in sources.items():
        try:
            tables[kind] = TABLES.get(kind, speed_table)(source)
        except MovedError as error:
            problems.append(str(error))
    if problems:
        raise MovedError("\n".join([*problems, "Or publish the other rows alone: --leave-out"]))
    if SUMMARY.keys() <= sources.keys():
        tables["summary"] = summary_table(sources)
    return tables


# ---- what a table is made of ----


@dataclass(frozen=True)
class Source:
    """A kind of measurement in a file."""

    kind: str
    document: dict[str, Any]
    path: Path
    leave_out: bool = False

    @property
    def rows(self) -> list[Row]:
        if "results" in self.document:
            return [row for row in self.document["results"] if report.table_name(row) == self.kind]
        rows: list[Row] = self.document[self.kind]
        return rows

    def publishable(self, name: Callable[[Row], str]) -> tuple[list[Row], list[str]]:
        """The rows that can be published, and what is to be said of the others.

        MovedError when there are others and they are not to be left out.
        """
        rows = self.rows
        limits = self.document.get("machine", {}).get("limits")
        causes = report.withheld(rows, limits, self.document.get("settings", {}).get("threads"))
        moved = {name(row): cause for row, cause in zip(rows, causes, strict=True) if cause}
        if moved and not self.leave_out:
            lines = [f"{place}: {cause}" for place, cause in moved.items()]
            problem = f"{self.kind}: the peak moved by more than {percent(report.MOST_MOVED)} beside"
            raise MovedError("\n  ".join([problem, *lines, f"measure again: {self.command}"]))
        if len(moved) == len(rows):
            raise ValueError(f"{self.kind}: no row can be published: {self.command}")
        notes = []
        if moved:
            words = "read bandwidth" if self.kind == "decode" else "peak"
            why = f"because the {words} moved by more than {percent(report.MOST_MOVED)}"
            notes.append(f"Not published, {why}: {', '.join(moved)}.")
        return [row for row, cause in zip(rows, causes, strict=True) if not cause], notes

    def unchecked(self, rows: list[Row], name: Callable[[Row], str]) -> list[str]:
        """Of files of before the peak was measured beside every row."""
        without = [name(row) for row in rows if not report.limits_in_rounds(row)]
        if not without:
            return []
        which = "this table" if len(without) == len(rows) else ", ".join(without)
        return [f"Whether the peak moved was not recorded for {which}."]

    def table(self, rows: list[Row], name: Callable[[Row], str], lines: list[str], *notes: str) -> str:
        """The lines, what there is to say of the rows, the command, the machine."""
        said = [*notes, *self.unchecked(rows, name)]
        return "\n".join([*lines, "", *(line for note in said for line in (note, "")), *self.footer()])

    def footer(self) -> list[str]:
        """Where the numbers come from: the command, and the machine as far as the file knows it."""
        facts = self.document.get("machine")
        if facts is None:
            return [f"`{self.command}`"]
        cpu, versions = report.provenance(facts).splitlines()
        return [f"`{self.command}`", "", f"{cpu}. Python {facts['python']}, {versions}."]

    @property
    def command(self) -> str:
        """The command line that makes this measurement again."""
        if "results" in self.document:
            return run_command(self.rows, self.document["settings"], self.path)
        settings = "".join(
            f" --{name.replace('_', '-')} {value}"
            for name, value in self.document.get("settings", {}).items()
        )
        return f"python bench/{self.kind}.py{settings} --json {shown(self.path)}"


def sources_of(path: Path, leave_out: bool) -> list[Source]:
    document = with_peaks(json.loads(path.read_text(encoding="utf-8")))
    for kind in TABLES:
        if kind in document:
            return [Source(kind, document, path, leave_out)]
    if "results" not in document:
        return [Source("footprint", document, path, leave_out)]
    kinds = dict.fromkeys(map(report.table_name, document["results"]))
    if not kinds:
        raise ValueError(f"{path} holds no results")
    return [Source(kind, document, path, leave_out) for kind in kinds]


def with_peaks(document: dict[str, Any]) -> dict[str, Any]:
    """In files of before, some rows have the peak only in what was computed from it."""
    for row in document.get("gradients", []):
        if "backward_of_peak" in row:
            row.setdefault("peak_gflops", row["backward_gflops"] / row["backward_of_peak"])
    for row in document.get("growth", []):
        row.setdefault("peak_gflops", 4 * row["length"] * HEAD_DIM / row["model_ns"])
    return document


# ---- the tables ----


def speed_table(source: Source) -> str:
    """A row for each shape and number of threads, whoever wins."""
    results, notes = source.publishable(report.place)
    first = source.rows[0]
    kind, limit = first["kind"], report.limit_of(first)
    names = [name for name in report.CONTENDERS if any(name in contenders(row) for row in results)]
    encoder = kind == "encoder"
    unit = "milliseconds (less is better)" if encoder else f"{limit.unit} (more is better)"
    precision = report.precision_words(kind, report.precision_of(first))
    lines = [f"{precision}{unit}, median ± half the interquartile range:", ""]
    rate = [f"selfattn, {limit.unit}"] if encoder else []
    lines += heading(["shape", "threads", *names, *rate, *limit_columns(limit), "best peer's time / ours"])
    for row in results:
        cells = [report.cell(row, name) for name in names]
        ours = row["contenders"].get(report.OURS)
        of_ours = [f"{ours[limit.rate]:.1f}" if ours else "-"] if encoder else []
        fraction = limit_cells(ours[limit.rate], row) if ours else [f"{report.divisor(row):.1f}", "-"]
        lines += [
            line([report.label(row), str(row["threads"]), *cells, *of_ours, *fraction, report.ratio(row)])
        ]
    wrong = [f"- {note}" for note in report.absent_and_wrong(results)]
    notes = [divisor_words(limit), *["\n".join(wrong)] * bool(wrong), *notes]
    return source.table(results, report.place, lines, *notes)


def limit_columns(limit: report.Limit = report.PEAK) -> list[str]:
    words = limit.words if limit is report.READ else "peak"
    return [f"{words}, {limit.unit}", "of bandwidth" if limit is report.READ else "of peak"]


def limit_cells(rate: float, row: Row) -> list[str]:
    """What the rate is divided by, and the quotient of both as they are printed."""
    limit = report.divisor(row)
    return [f"{limit:.1f}", percent(report.of_limit(rate, limit))]


def divisor_words(limit: report.Limit = report.PEAK, rate: str = "selfattn's rate") -> str:
    """How the columns of `limit_columns` were measured."""
    work = {
        report.PEAK: "fused multiply-adds on registers alone",
        report.BFLOAT16_PEAK: "bfloat16 products on registers alone",
        report.READ: "reads of memory that no processor cache holds",
    }[limit]
    column, quotient = limit_columns(limit)
    name, _, unit = column.partition(", ")
    return (
        f"*{quotient.capitalize()}* is {rate} over the {name} of the same row: {unit} of {work},"
        " on the same number of threads, in turns with the calls, in the best round."
    )


def contenders(result: Row) -> set[str]:
    """Everybody who was asked to take part, the refused and the absent too."""
    return {*result["contenders"], *result["refused"], *result["absent"]}


def summary_table(sources: dict[str, Source]) -> str:
    """Five rows on one thread for README."""
    lines = heading(["float32, one thread", "selfattn", "best peer", "best peer's time / ours"])
    missing = []
    for kind, shapes in SUMMARY.items():
        rows, _ = sources[kind].publishable(report.place)
        of_shape = {row["shape"]: row for row in rows if row["threads"] == 1 and "best_peer" in row}
        missing += [f"{kind} {shape}" for shape in shapes if shape not in of_shape]
        unit = "ms" if kind == "encoder" else "GFLOP/s"
        for row in (of_shape[shape] for shape in shapes if shape in of_shape):
            peer = row["best_peer"]
            ours, theirs = (f"{report.number(row, name)} {unit}" for name in (report.OURS, peer))
            ratio = f"{row['ratio_to_best_peer']:.2f}"
            lines += [line([f"{kind} {row['shape']}", ours, f"{theirs} ({peer})", ratio])]
    lines += ["", *[f"Not published: {', '.join(missing)}.\n"] * bool(missing)]
    footers = dict.fromkeys(report.provenance(sources[kind].document["machine"]) for kind in SUMMARY)
    machines = [text.splitlines()[0] for text in footers]
    commands = " and ".join(f"`{sources[kind].command}`" for kind in SUMMARY)
    return "\n".join([*lines, f"{'; '.join(dict.fromkeys(machines))}. {commands}."])


def footprint_table(source: Source) -> str:
    """What selfattn costs besides time."""
    numbers = {
        name: value for name, value in source.document.items() if isinstance(value, int | float | None)
    }
    if not numbers:
        raise ValueError(f"{source.path} holds neither results of a benchmark nor numbers of footprint.py")
    lines = heading(["", "measured"])
    lines += [line([name, "-" if value is None else f"{value:.2f}"]) for name, value in numbers.items()]
    return "\n".join([*lines, "", *source.footer()])


def masks_table(source: Source) -> str:
    """What masks save and options cost."""

    def name(row: Row) -> str:
        return f"{row['name']} {row['shape']}"

    rows, notes = source.publishable(name)
    lines = heading(["", "shape", "time / time without"])
    lines += [line([row["name"], row["shape"], report.spread(row)]) for row in rows]
    return source.table(rows, name, lines, *notes)


def gradients_table(source: Source) -> str:
    """Forward and backward, and a training step, beside PyTorch's."""

    def name(row: Row) -> str:
        return f"{row['what']} {row['shape']} on {report.words_of_threads(row['threads'])}"

    rows, notes = source.publishable(name)
    columns = ["selfattn", "backward, GFLOP/s", *limit_columns()]
    lines = heading(["forward and backward", "shape", "threads", *columns, "PyTorch's time / ours"])
    for row in rows:
        ours = f"{row['ms']:.0f} ms" if "ms" in row else f"{row['gflops']:.1f} GFLOP/s"
        backward = ["", "", ""]
        if row["what"] == "full":  # of a causal pass half is skipped: no fraction of peak
            rate = row["backward_gflops"]
            backward = [f"{rate:.1f}", *limit_cells(rate, row)]
        low, high = row.get("quartiles", (0, 0))
        ratio = f"{row['torch_over_ours']:.2f} ±{(high - low) / 2:.2f}" if "torch_over_ours" in row else "-"
        lines += [line([row["what"], row["shape"], str(row["threads"]), ours, *backward, ratio])]
    return source.table(rows, name, lines, divisor_words(rate="the rate of the backward pass"), *notes)


def threads_table(source: Source) -> str:
    """What threads give and cost; every ratio is the better the larger."""

    def name(row: Row) -> str:
        return f"{row['part']} {row['case']}"

    rows, notes = source.publishable(name)
    lines = heading(["", "case", "figures", "ratio"])
    for row in rows:
        figures = [(*name.split(", ", 1), rounded(value)) for name, value in row["figures"].items()]
        cell = ", ".join(f"{who}: {value:g} {unit}" for unit, who, value in figures)
        ratio = row["ratio"]
        if figures:
            first, second = (value for _, _, value in figures)
            ratio = first / second if figures[0][0] == "ms" else second / first
        lines += [line([row["part"], row["case"], cell, with_spread(ratio, row)])]
    return source.table(rows, name, lines, *notes)


def growth_table(source: Source) -> str:
    """Time for a token and memory, by length and by batch: every other row, the plot has them all."""

    def name(row: Row) -> str:
        return f"{row['batch']} x {row['length']}"

    rows, notes = source.publishable(name)
    axes = [[row for row in source.rows if row["axis"] == axis] for axis in ("length", "batch")]
    columns = ["ns for a token", "GFLOP/s", *limit_columns(), "MiB besides the arrays"]
    lines = heading(["batch", "length", *columns])
    for row in (row for row in axes[0][::2] + axes[1][::2] if row in rows):
        rate = 4 * row["length"] * HEAD_DIM / row["ns"]
        cells = [f"{row['ns']:.0f}", f"{rate:.1f}", *limit_cells(rate, row), f"{row['mib']:.2f}"]
        lines += [line([str(row["batch"]), str(row["length"]), *cells])]
    return source.table(rows, name, lines, divisor_words(), *notes)


def sizes_table(source: Source) -> str:
    """Fractions of the peak at every head_dim and layout, beside the contiguous neighbour's."""

    def name(row: Row) -> str:
        return f"{row['head_dim']}, {row['value_dim']}, {row['layout']}"

    rows, notes = source.publishable(name)
    sizes = ["head_dim", "value_dim", "layout"]
    lines = heading([*sizes, "GFLOP/s", *limit_columns(), "neighbour", "its GFLOP/s", "ratio"])
    for row in rows:
        rate, beside = row["of_peak"] * report.divisor(row), ["", "", ""]
        if "ratio" in row:
            other = row["neighbour_of_peak"] * report.divisor(row)
            ratio = with_spread(round(rate, 1) / round(other, 1), row)
            beside = [str(row["neighbour"]), f"{other:.1f}", ratio]
        cells = [f"{rate:.1f}", *limit_cells(rate, row), *beside]
        lines += [line([*(str(row[size]) for size in sizes), *cells])]
    return source.table(rows, name, lines, divisor_words(), *notes)


def isa_table(source: Source) -> str:
    """The second-best instruction set against the best, and the peaks of both."""

    def name(row: Row) -> str:
        return f"{row['shape']} on {report.words_of_threads(row['threads'])}"

    rows, notes = source.publishable(name)
    isas = list(source.rows[0]["ms"])
    lines = heading(["shape", "threads", *(f"{isa}, ms" for isa in isas), "ratio"])
    for row in rows:
        best, second = (rounded(row["ms"][isa]) for isa in isas)
        cells = [f"{best:g}", f"{second:g}", with_spread(best / second, row)]
        lines += [line([row["shape"], str(row["threads"]), *cells])]
    for threads, both in source.document["peak_gflops"].items():
        peaks = " and ".join(f"{peak:.1f} GFLOP/s with {isa}" for isa, peak in both.items())
        notes.append(f"FMA peak on {report.words_of_threads(int(threads))}: {peaks}.")
    return source.table(rows, name, lines, *notes)


def soak_table(source: Source) -> str:
    """Resident memory of a process that embeds."""
    lines = heading(["resident memory, MiB", "measured", "at most"])
    for name, value, most in source.document["soak"]:
        bar = "" if most is None else f"{most:g}{' (exceeded)' if value > most else ''}"
        lines += [line([name, f"{value:.1f}", bar])]
    return "\n".join([*lines, "", *source.footer()])


TABLES: dict[str, Callable[[Source], str]] = {
    "masks": masks_table,
    "gradients": gradients_table,
    "threads": threads_table,
    "growth": growth_table,
    "sizes": sizes_table,
    "isa": isa_table,
    "soak": soak_table,
    "footprint": footprint_table,
}


# ---- words and numbers ----


def percent(fraction: float) -> str:
    return f"{fraction:.0%}".replace("%", " %")


def rounded(value: float) -> float:
    """To four digits, as it is printed."""
    return float(f"{value:.4g}")


def with_spread(ratio: float, row: Row) -> str:
    """The ratio of two medians, with half the interquartile range of the ratios within the rounds."""
    return report.spread(row | {"ratio": ratio})


def heading(columns: list[str]) -> list[str]:
    """The head of a table: names left, numbers right."""
    return [line(columns), line(["---", *["---:"] * (len(columns) - 1)])]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---- commands ----


def run_command(results: list[Row], settings: dict[str, Any], path: Path) -> str:
    """The `selfattn bench` that makes these rows again."""
    kind = results[0]["kind"]
    threads, shapes = (distinct(results, name) for name in ("threads", "shape"))
    peers = [name for name in CONTENDERS[kind] if name != report.OURS]
    tried = [name for name in peers if any(name in contenders(result) for result in results)]
    command = ["selfattn bench", kind, "--threads", ",".join(threads)]
    model, precision = results[0].get("random_model"), report.precision_of(results[0])
    command += ["--model", model] if model else []
    command += ["--precision", precision] if precision != "float32" else []
    if shapes != list(RANDOM_SHAPES if model else SHAPES[kind]):
        command += ["--shapes", ",".join(shapes)]
    if kind == "decode":
        caches = distinct(results, "dtype")
        command += ["--queries", ",".join(distinct(results, "queries"))]
        command += [] if caches == list(CACHES) else ["--caches", ",".join(caches)]
    if tried != peers:
        command += ["--vs", ",".join(tried) or "''"]
    command += ["--rounds", str(settings["rounds"]), "--min-time", str(settings["min_time"])]
    return " ".join([*command, "--json", shown(path)])


def distinct(results: list[Row], name: str) -> list[str]:
    """The values of a field, each once, in the order of the rows."""
    return list(dict.fromkeys(str(result[name]) for result in results))


def shown(path: Path) -> str:
    """The path as it is from the top of the repository; only its name, if it lies elsewhere."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else path.name


if __name__ == "__main__":
    sys.exit(main())
