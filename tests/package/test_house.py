# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, so that nobody has to remember them; DESIGN.md says why each one is there."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from support.house import (
    C_FILES,
    CYTHON_MODULES,
    PYTHON_FILES,
    ROOT,
    SOURCES,
    files,
    name,
    needs_the_sources,
    offenders,
    sources_are_tested,
)

BUILD_FILES = [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile")]
STUBS = [path for path in files("csrc/**/*.c") if re.search(r"(?m)^#define SA_ISA ", path.read_text("ascii"))]
VECTORS = [path.name for path in C_FILES if path.parent.name == "vector"]

INTRINSICS = r"\b_mm\w*_\w+|\b__m(128|256|512)\w*|\bv[a-z0-9]+q_[fsu]\d+|\bfloat(32|64)x\d_t"
INTRINSIC_HEADERS = r"immintrin\.h|arm_neon\.h"
THREADS = r"pthread|threads\.h|futex|\bthrd_|stdatomic|__atomic"
THREADED = [path.name for path in C_FILES if path.parent.name in ("runtime", "openmp")]
FAST_MATH = r"-ffast-math|-Ofast|-march=|-mtune=|-funsafe-math|-fopenmp|#\s*pragma\s+omp|\bomp\.h"

pytestmark = needs_the_sources


def test_there_is_something_to_check():
    assert len(C_FILES) > 10
    assert len(PYTHON_FILES) > 10
    assert len(CYTHON_MODULES) >= 4
    assert len(STUBS) >= 4


def test_the_kernels_do_not_know_python():
    assert not offenders(C_FILES, r"Python\.h|PyObject|numpy/")


def test_threads_live_in_the_pool():
    assert not offenders(C_FILES, THREADS, allowed=THREADED)


def test_only_the_vector_knows_an_instruction_set():
    assert not offenders(C_FILES, INTRINSICS, allowed=VECTORS)
    assert not offenders(C_FILES, INTRINSIC_HEADERS, allowed=(*VECTORS, "editor.h", *(s.name for s in STUBS)))


def test_no_flag_that_changes_arithmetic_or_ties_the_build_to_one_machine():
    assert not offenders([*BUILD_FILES, *C_FILES], FAST_MATH)
    assert "-ffp-contract=off" in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_a_stub_only_names_its_instruction_set():
    assert not [name(path) for path in STUBS if len(path.read_text(encoding="ascii").splitlines()) > 21]


def test_c_sources_are_ascii():
    assert not [name(path) for path in C_FILES if not path.read_bytes().isascii()]


def test_nothing_is_left_for_later():
    words = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"))
    assert not offenders([*SOURCES, *files("tests/**/*.py"), *BUILD_FILES], rf"\b({words})\b")


def test_every_extension_module_has_its_types():
    assert not [name(path) for path in CYTHON_MODULES if not path.with_suffix(".pyi").exists()]
    assert (ROOT / "selfattn" / "py.typed").exists()


def test_every_public_name_is_documented():
    import selfattn

    names = [public for public in selfattn.__all__ if public != "__version__"]
    assert {"attention", "attention_weights", "SelfAttentionCell", "Encoder", "TextEncoder"} <= set(names)
    assert not [public for public in names if len((getattr(selfattn, public).__doc__ or "").strip()) < 20]


needs_an_installed_package = pytest.mark.skipif(sources_are_tested(), reason="the source tree is tested")


@needs_an_installed_package
def test_what_is_tested_is_what_is_installed():
    """The source tree in the way of the installed package would be tested in its place."""
    import selfattn

    assert not Path(selfattn.__file__).resolve().is_relative_to(ROOT / "selfattn")


@needs_an_installed_package
def test_the_package_holds_no_sources():
    import selfattn

    folder = Path(selfattn.__file__).parent
    installed = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert len(installed) > 50
    kinds = {".py", ".pyi", ".so", ".html", ".css", ".js"}
    assert not [path.name for path in installed if path.suffix not in kinds and path.name != "py.typed"]
    assert version("selfattn") == selfattn.__version__


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
