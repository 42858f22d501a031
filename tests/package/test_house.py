"""The rules of the house, so that nobody has to remember them; DESIGN.md says why each one is there."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
C_FILES = sorted(ROOT.glob("csrc/*.[ch]"))
PYTHON_FILES = sorted(path for path in ROOT.glob("selfattn/**/*.py"))
CYTHON_FILES = sorted(ROOT.glob("selfattn/**/*.pyx"))
SOURCES = [*C_FILES, *PYTHON_FILES, *CYTHON_FILES]
BUILD_FILES = [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile")]
STUBS = [path for path in C_FILES if re.fullmatch(r"kernels_\w+\.c", path.name)]
VECTORS = [path.name for path in C_FILES if re.fullmatch(r"vector\w*\.inc\.h", path.name)]

INTRINSICS = r"\b_mm\w*_\w+|\b__m(128|256|512)\w*|\bv[a-z0-9]+q_[fsu]\d+|\bfloat(32|64)x\d_t"
INTRINSIC_HEADERS = r"immintrin\.h|arm_neon\.h"
THREADS = r"pthread|threads\.h|futex|\bthrd_|stdatomic|__atomic"
FAST_MATH = r"-ffast-math|-Ofast|-march=|-mtune=|-funsafe-math|-fopenmp|#\s*pragma\s+omp|\bomp\.h"

pytestmark = pytest.mark.skipif(not C_FILES, reason="these are rules for the source tree")


def name(path):
    return str(path.relative_to(ROOT))


def offenders(paths, pattern, *, allowed=()):
    """The lines of the files that match, as file:line: text."""
    return [
        f"{name(path)}:{number}: {line.strip()}"
        for path in paths
        if path.name not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_there_is_something_to_check():
    assert len(C_FILES) > 10
    assert len(PYTHON_FILES) > 10
    assert len(CYTHON_FILES) == 4
    assert len(STUBS) >= 4


def test_the_kernels_do_not_know_python():
    assert not offenders(C_FILES, r"Python\.h|PyObject|numpy/")


def test_threads_live_in_the_pool():
    assert not offenders(C_FILES, THREADS, allowed=("pool.c", "shares.h", "team.c", "workspace.c"))


def test_only_the_vector_knows_an_instruction_set():
    assert not offenders(C_FILES, INTRINSICS, allowed=VECTORS)
    assert not offenders(C_FILES, INTRINSIC_HEADERS, allowed=(*VECTORS, *(path.name for path in STUBS)))


def test_no_flag_that_changes_arithmetic_or_ties_the_build_to_one_machine():
    assert not offenders([*BUILD_FILES, *C_FILES], FAST_MATH)
    assert "-ffp-contract=off" in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_a_stub_only_names_its_instruction_set():
    assert not [name(path) for path in STUBS if len(path.read_text(encoding="ascii").splitlines()) > 20]


def test_c_sources_are_ascii():
    assert not [name(path) for path in C_FILES if not path.read_bytes().isascii()]


def test_no_file_is_long():
    assert not [name(path) for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 400]


def c_functions(path):
    """(name, lines) of each function: in our style its braces alone stand in column 0."""
    start = None
    lines = path.read_text(encoding="ascii").splitlines()
    for number, line in enumerate(lines):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            yield lines[start - 1].strip(), number - start + 1
            start = None


def python_functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, node.end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_long():
    functions = [(path, *f) for path in C_FILES for f in c_functions(path)]
    functions += [(path, *f) for path in PYTHON_FILES for f in python_functions(path)]
    assert len(functions) > 100
    assert not [f"{name(path)}: {f} has {lines} lines" for path, f, lines in functions if lines > 80]


def test_nothing_is_left_for_later():
    words = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"))
    assert not offenders([*SOURCES, *ROOT.glob("tests/**/*.py"), *BUILD_FILES], rf"\b({words})\b")


def test_every_extension_module_has_its_types():
    assert not [name(path) for path in CYTHON_FILES if not path.with_suffix(".pyi").exists()]
    assert (ROOT / "selfattn" / "py.typed").exists()


def test_every_public_name_is_documented():
    import selfattn

    names = [public for public in selfattn.__all__ if public != "__version__"]
    assert {"attention", "attention_weights", "SelfAttentionCell", "Encoder", "TextEncoder"} <= set(names)
    assert not [public for public in names if len((getattr(selfattn, public).__doc__ or "").strip()) < 20]


@pytest.mark.skipif("PYTHONPATH" in os.environ, reason="PYTHONPATH says what to test")
def test_what_is_tested_is_what_is_installed():
    """The source tree in the way of the installed package would be tested in its place."""
    import selfattn

    assert not Path(selfattn.__file__).resolve().is_relative_to(ROOT / "selfattn")


def tracked_files():
    process = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / file for file in process.stdout.split("\0") if file]


def test_no_weights_and_no_binaries_are_tracked():
    files = [path for path in tracked_files() if path.is_file()]
    assert not [name(path) for path in files if path.stat().st_size > 300_000]
    binary = {".so", ".o", ".a", ".bin", ".safetensors", ".onnx", ".pkl", ".pt", ".whl"}
    assert not [name(path) for path in files if path.suffix in binary]
