"""What selfattn costs besides time: `python bench/footprint.py [--wheel FILE] [--json FILE]`."""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from selfattn.bench import machine

ROOT = Path(__file__).resolve().parent.parent

IMPORT_TIME = """
import time, numpy
start = time.perf_counter()
import selfattn
print((time.perf_counter() - start) * 1e3)
"""

# The arrays are filled before the first look at the high-water mark, so it then moves by the call alone.
PEAK_MEMORY = """
import resource, sys
import numpy as np, selfattn
rng = np.random.default_rng(0)
query, key, value = (np.empty((1, {length}, 64), np.float32) for _ in range(3))
for array in (query, key, value):
    rng.standard_normal(out=array, dtype=np.float32)
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = selfattn.attention(query, key, value)
print(((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit - out.nbytes) / 2**20)
"""


def fresh_interpreter(code: str) -> float:
    """The number that the code prints."""
    command = [sys.executable, "-P", "-c", code]  # what is installed, not this directory
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def import_milliseconds(repeats: int = 11) -> float:
    """Median time of `import selfattn` after `import numpy`, bytecode and files cached."""
    return statistics.median(fresh_interpreter(IMPORT_TIME) for _ in range(repeats + 1))


def peak_megabytes(length: int) -> float:
    """Memory besides the result at its highest during one call, one head of head_dim 64, default threads."""
    return fresh_interpreter(PEAK_MEMORY.format(length=length))


def newest_wheel() -> Path | None:
    wheels = sorted((ROOT / "dist").glob("selfattn-*.whl"), key=lambda path: path.stat().st_mtime)
    return wheels[-1] if wheels else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Import time, wheel size and peak memory of selfattn.")
    parser.add_argument("--wheel", type=Path, default=newest_wheel(), help="default: the newest in dist/")
    parser.add_argument("--length", type=int, default=16384, help="of the attention call (default: 16384)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    numbers = {
        "import, ms above numpy": import_milliseconds(),
        f"peak extra memory at length {options.length}, MiB": peak_megabytes(options.length),
        "wheel, MB": options.wheel.stat().st_size / 1e6 if options.wheel else None,
    }
    for name, number in numbers.items():
        print(f"{name:<44}{'no wheel in dist/' if number is None else f'{number:.2f}'}")
    if options.json:
        document = numbers | {"machine": machine.describe()}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
