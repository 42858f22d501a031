"""The tables of README.md, from what a benchmark wrote: `python bench/table.py FILE.json ...`.

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

README = Path(__file__).resolve().parent.parent / "README.md"


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 for a file or a README that cannot be used."""
    parser = argparse.ArgumentParser(description="Put measurements into the tables of README.md.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what --json wrote")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        text = options.readme.read_text(encoding="utf-8")
        for path in options.files:
            for kind, table in tables(json.loads(path.read_text(encoding="utf-8")), path).items():
                text = replace(text, kind, table)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.readme.write_text(text, encoding="utf-8")
    return 0


def replace(text: str, kind: str, table: str) -> str:
    """The text with what stands between the markers of this kind replaced by the table."""
    pattern = re.compile(rf"(<!-- bench:{kind} -->\n).*?(<!-- /bench -->)", re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise ValueError(f"README has {found} places <!-- bench:{kind} --> ... <!-- /bench -->; it needs 1")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


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
        fraction = "-" if part is None else f"{part:.0%}".replace("%", " %")
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
        low, high = result["quartiles"]
        ratio = f"{result['ratio']:.2f} ±{(high - low) / 2:.2f}"
        lines += [line([result["name"], result["shape"], ratio])]
    return "\n".join([*lines, "", *source("masks", document, path)])


def gradients_table(document: dict[str, Any], path: Path) -> str:
    """Forward and backward, and a training step, beside PyTorch's."""
    heading = ["forward and backward", "shape", "threads", "selfattn", "backward of peak"]
    lines = rows([*heading, "PyTorch's time / ours"])
    for result in document["gradients"]:
        ours = f"{result['ms']:.0f} ms" if "ms" in result else f"{result['gflops']:.0f} GFLOP/s"
        full = result["what"] == "full"  # of a causal pass half is skipped: no fraction of peak
        fraction = f"{result['backward_of_peak']:.0%}".replace("%", " %") if full else ""
        low, high = result.get("quartiles", (0, 0))
        spread = f" ±{(high - low) / 2:.2f}"
        ratio = f"{result['torch_over_ours']:.2f}{spread}" if "torch_over_ours" in result else "-"
        lines += [line([result["what"], result["shape"], str(result["threads"]), ours, fraction, ratio])]
    return "\n".join([*lines, "", *source("gradients", document, path)])


def threads_table(document: dict[str, Any], path: Path) -> str:
    """What threads give and cost, beside what they are meant to; every figure is the better the larger."""
    lines = rows(["", "case", "figures", "ratio", "at least"])
    for result in document["threads"]:
        measured = ", ".join(f"{name}: {value:.4g}" for name, value in result["figures"].items())
        low, high = result["quartiles"]
        bar = "" if result["bar"] is None else f"{result['bar']:.2f}"
        ratio = f"{result['ratio']:.2f} ±{(high - low) / 2:.2f}"
        lines += [line([result["part"], result["case"], measured, ratio, bar])]
    return "\n".join([*lines, "", *source("threads", document, path)])


def growth_table(document: dict[str, Any], path: Path) -> str:
    """Time for a token and memory, by length and by batch."""
    lines = rows(
        ["batch", "length", "ns for a token", "at the FMA peak", "of peak", "MiB besides the arrays"]
    )
    for row in document["growth"]:
        fraction = f"{row['model_ns'] / row['ns']:.0%}".replace("%", " %")
        times = [f"{row['ns']:.0f}", f"{row['model_ns']:.0f}"]
        lines += [line([str(row["batch"]), str(row["length"]), *times, fraction, f"{row['mib']:.2f}"])]
    return "\n".join([*lines, "", *source("growth", document, path)])


def soak_table(document: dict[str, Any], path: Path) -> str:
    """Resident memory of a process that embeds."""
    lines = rows(["resident memory, MiB", "measured", "at most"])
    for name, value, most in document["soak"]:
        lines += [line([name, f"{value:.1f}", "" if most is None else f"{most:g}"])]
    return "\n".join([*lines, "", *source("soak", document, path)])


SCRIPTS = {
    "masks": masks_table,
    "gradients": gradients_table,
    "threads": threads_table,
    "growth": growth_table,
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
    return str(resolved.relative_to(README.parent)) if resolved.is_relative_to(README.parent) else path.name


if __name__ == "__main__":
    sys.exit(main())
