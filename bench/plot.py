"""The plots of measurements: `python bench/plot.py FILE.json ... --to FILE.png`.

Each FILE.json is what `selfattn bench` wrote with --json. Rows of several files come into one picture; the
machine and the date are those of the first. What there is to see is drawn: bars, lengths, roofline, threads.
"""

import argparse
import json
from pathlib import Path

from selfattn.bench.plot import plot


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what selfattn bench measured.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what --json wrote")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="such as docs/bench.png")
    options = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in options.files]
    machine = documents[0]["machine"]
    limits: dict[str, dict[str, float]] = {}
    for document in documents:
        for threads, measured in document["machine"]["limits"].items():
            limits[threads] = measured | limits.get(threads, {})
    machine["limits"] = limits
    results = [result for document in documents for result in document["results"]]
    print(*plot({"machine": machine, "results": results}, options.to), sep="\n")


if __name__ == "__main__":
    main()
