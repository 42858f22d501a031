"""Puts what a benchmark wrote into the tables of the pages: `python bench/table.py FILE.json ...`.

Each FILE is what `selfattn bench` or another script here wrote with --json. The text between
`<!-- bench:KIND -->` and `<!-- /bench -->` is replaced, with the machine and the command of the measurement
beside the numbers. What no FILE holds stays as it is.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from selfattn.bench import report
from selfattn.bench.options import CACHES
from selfattn.bench.run import CONTENDERS, RANDOM_SHAPES, SHAPES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 for a file or a page that cannot be used."""
    parser = argparse.ArgumentParser(description="Put measurements into the pages' tables.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what --json wrote")
    parser.add_argument("--pages", nargs="+", type=Path, default=PAGES, metavar="FILE.md")
    options = parser.parse_args(arguments)
    try:
        texts = [page.read_text(encoding="utf-8") for page in options.pages]
        for path in options.files:
            for kind, table in tables(json.loads(path.read_text(encoding="utf-8")), path).items():
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


def tables(document: dict[str, Any], path: Path) -> dict[str, str]:
    """The Markdown of each kind of measurement in the file."""
    for name, table in SCRIPTS.items():
        if name in document:
            return {name: table(document, path)}
    if "results" not in document:
        return {"footprint": footprint_table(document, path)}
    names = dict.fromkeys(map(report.table_name, document["results"]))
    if not names:
        raise ValueError(f"{path} holds no results")
    return {name: speed_table(name, document, path) for name in names}


def rows_of(name: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    return [result for result in document["results"] if report.table_name(result) == name]


def speed_table(name: str, document: dict[str, Any], path: Path) -> str:
    """A row for each shape and number of threads, whoever wins."""
    results = rows_of(name, document)
    kind = results[0]["kind"]
    names = [name for name in report.CONTENDERS if any(name in contenders(result) for result in results)]
    limit = report.limit_of(results[0])
    unit = "milliseconds (less is better)" if kind == "encoder" else f"{limit.unit} (more is better)"
    precision = report.precision_words(kind, report.precision_of(results[0]))
    lines = [f"{precision}{unit}, median ± half the interquartile range:", ""]
    of_limit = f"of {limit.words}" if limit is report.READ else "of peak"
    lines += rows(["shape", "threads", *names, of_limit, "best peer's time / ours"])
    for result in results:
        part = report.fraction_of_limit(result)
        fraction = "-" if part is None else percent(part)
        cells = [report.cell(result, name) for name in names]
        lines += [
            line([report.label(result), str(result["threads"]), *cells, fraction, report.ratio(result)])
        ]
    notes = report.footnotes(results)
    return "\n".join(
        [*lines, "", *(f"- {note}" for note in notes), *[""] * bool(notes), *source(name, document, path)]
    )


def contenders(result: dict[str, Any]) -> set[str]:
    """Everybody who was asked to take part, the refused and the absent too."""
    return {*result["contenders"], *result["refused"], *result["absent"]}


def footprint_table(document: dict[str, Any], path: Path) -> str:
    """What selfattn costs besides time."""
    numbers = {name: value for name, value in document.items() if isinstance(value, int | float | None)}
    if not numbers:
        raise ValueError(f"{path} holds neither results of a benchmark nor numbers of footprint.py")
    lines = rows(["", "measured"])
    lines += [line([name, "-" if value is None else f"{value:.2f}"]) for name, value in numbers.items()]
    return "\n".join([*lines, "", *source("footprint", document, path)])


def masks_table(document: dict[str, Any], path: Path) -> str:
    """What masks save and options cost."""
    lines = rows(["", "shape", "time / time without"])
    for result in document["masks"]:
        lines += [line([result["name"], result["shape"], report.spread(result)])]
    return "\n".join([*lines, "", *source("masks", document, path)])


def gradients_table(document: dict[str, Any], path: Path) -> str:
    """Forward and backward, and a training step, beside PyTorch's."""
    heading = ["forward and backward", "shape", "threads", "selfattn", "backward of peak"]
    lines = rows([*heading, "PyTorch's time / ours"])
    for result in document["gradients"]:
        ours = f"{result['ms']:.0f} ms" if "ms" in result else f"{result['gflops']:.0f} GFLOP/s"
        full = result["what"] == "full"  # of a causal pass half is skipped: no fraction of peak
        fraction = percent(result["backward_of_peak"]) if full else ""
        low, high = result.get("quartiles", (0, 0))
        ratio = (
            f"{result['torch_over_ours']:.2f} ±{(high - low) / 2:.2f}" if "torch_over_ours" in result else "-"
        )
        lines += [line([result["what"], result["shape"], str(result["threads"]), ours, fraction, ratio])]
    return "\n".join([*lines, "", *source("gradients", document, path)])


def threads_table(document: dict[str, Any], path: Path) -> str:
    """What threads give and cost, beside what they are meant to; every figure is the better the larger."""
    lines = rows(["", "case", "figures", "ratio", "at least"])
    for result in document["threads"]:
        measured = ", ".join(f"{name}: {value:.4g}" for name, value in result["figures"].items())
        bar = "" if result["bar"] is None else f"{result['bar']:.2f}"
        lines += [line([result["part"], result["case"], measured, report.spread(result), bar])]
    return "\n".join([*lines, "", *watched(document["threads"]), *source("threads", document, path)])


def growth_table(document: dict[str, Any], path: Path) -> str:
    """Time for a token and memory, by length and by batch: every other row, the plot has them all."""
    lines = rows(
        ["batch", "length", "ns for a token", "at the FMA peak", "of peak", "MiB besides the arrays"]
    )
    axes = [[row for row in document["growth"] if row["axis"] == axis] for axis in ("length", "batch")]
    for row in axes[0][::2] + axes[1][::2]:
        fraction = percent(row["model_ns"] / row["ns"])
        times = [f"{row['ns']:.0f}", f"{row['model_ns']:.0f}"]
        lines += [line([str(row["batch"]), str(row["length"]), *times, fraction, f"{row['mib']:.2f}"])]
    return "\n".join([*lines, "", *watched(document["growth"]), *source("growth", document, path)])


def sizes_table(document: dict[str, Any], path: Path) -> str:
    """Fractions of the peak at every head_dim and layout, beside the contiguous neighbour's."""
    lines = rows(["head_dim", "value_dim", "layout", "of peak", "neighbour", "ratio", "at least"])
    for row in document["sizes"]:
        beside = ["", "", ""]
        if "ratio" in row:
            neighbour = f"{row['neighbour']}: {percent(row['neighbour_of_peak'])}"
            beside = [neighbour, report.spread(row), f"{row['bar']:.2f}"]
        sizes = [str(row["head_dim"]), str(row["value_dim"]), row["layout"]]
        lines += [line([*sizes, percent(row["of_peak"]), *beside])]
    return "\n".join([*lines, "", *watched(document["sizes"]), *source("sizes", document, path)])


def isa_table(document: dict[str, Any], path: Path) -> str:
    """The second-best instruction set against the best, and the peaks of both."""
    isas = list(document["isa"][0]["ms"])
    lines = rows(["shape", "threads", *(f"{isa}, ms" for isa in isas), "ratio", "at least"])
    for row in document["isa"]:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        times = [f"{row['ms'][isa]:.4g}" for isa in isas]
        lines += [line([row["shape"], str(row["threads"]), *times, report.spread(row), bar])]
    lines += [""]
    for threads, both in document["peak_gflops"].items():
        peaks = ", ".join(f"{peak:.0f} ({isa})" for isa, peak in both.items())
        lines += [f"{threads} thread(s): FMA peak, GFLOP/s: {peaks}.", ""]
    return "\n".join([*lines, *watched(document["isa"]), *source("isa", document, path)])


def soak_table(document: dict[str, Any], path: Path) -> str:
    """Resident memory of a process that embeds."""
    lines = rows(["resident memory, MiB", "measured", "at most"])
    for name, value, most in document["soak"]:
        lines += [line([name, f"{value:.1f}", "" if most is None else f"{most:g}"])]
    return "\n".join([*lines, "", *source("soak", document, path)])


def watched(results: list[dict[str, Any]]) -> list[str]:
    """How often something was measured again, in all rows together."""
    total = {count: sum(row.get(count, 0) for row in results) for count in ("repeated", "slow")}
    return [f"- In all rows: {words}" for words in report.disturbed(total)] + [""] * any(total.values())


def percent(fraction: float) -> str:
    return f"{fraction:.0%}".replace("%", " %")


SCRIPTS = {
    "masks": masks_table,
    "gradients": gradients_table,
    "threads": threads_table,
    "growth": growth_table,
    "sizes": sizes_table,
    "isa": isa_table,
    "soak": soak_table,
}


def rows(heading: list[str]) -> list[str]:
    """The head of a table: names left, numbers right."""
    return [line(heading), line(["---", *["---:"] * (len(heading) - 1)])]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def source(kind: str, document: dict[str, Any], path: Path) -> list[str]:
    """Where the numbers come from: the command, and the machine as far as the file knows it."""
    if "results" in document:
        command = run_command(kind, document, path)
    else:
        settings = "".join(
            f" --{name.replace('_', '-')} {value}" for name, value in document.get("settings", {}).items()
        )
        command = f"python bench/{kind}.py{settings} --json {shown(path)}"
    facts = document.get("machine")
    if facts is None:
        return [f"`{command}`"]
    cpu, versions = report.provenance(facts).splitlines()
    limits = limits_of(kind, document) if "results" in document else []
    return [f"`{command}`", "", ". ".join([cpu, *limits, f"Python {facts['python']}, {versions}."])]


def limits_of(name: str, document: dict[str, Any]) -> list[str]:
    """What the rows were measured against, for each number of threads."""
    limit = report.limit_of(rows_of(name, document)[0])
    measured = document["machine"].get("limits", {})
    return [
        f"{threads} thread(s): {limit.words} {values[limit.measured]:.0f} {limit.unit}"
        for threads, values in measured.items()
    ]


def run_command(name: str, document: dict[str, Any], path: Path) -> str:
    """The command line that makes this measurement again."""
    results = rows_of(name, document)
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
    settings = document["settings"]
    command += ["--rounds", str(settings["rounds"]), "--min-time", str(settings["min_time"])]
    return " ".join([*command, "--json", shown(path)])


def distinct(results: list[dict[str, Any]], name: str) -> list[str]:
    """The values of a field, each once, in the order of the rows."""
    return list(dict.fromkeys(str(result[name]) for result in results))


def shown(path: Path) -> str:
    """The path as it is from the top of the repository; only its name, if it lies elsewhere."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else path.name


if __name__ == "__main__":
    sys.exit(main())
