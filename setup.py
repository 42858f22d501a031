"""Builds the compiled modules: the kernels (all of csrc), the layer loop on top of them, and DLPack."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off"]  # the same arithmetic on every machine
FLAGS += ["-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
FLAGS += os.environ.get("SELFATTN_CFLAGS", "").split()
HEADERS = [str(path) for path in sorted(Path("csrc").rglob("*.h"))]
PARTS = [str(path) for path in sorted(Path("selfattn").glob("*.pxi"))]
SOURCES = [str(path) for path in sorted(Path("csrc").rglob("*.c"))]


def extension(name: str, sources: list[str]) -> Extension:
    return Extension(
        f"selfattn.{name}",
        sources=[f"selfattn/{name}.pyx", *sources],
        depends=[*HEADERS, "selfattn/_kernels.pxd", *PARTS],
        include_dirs=["csrc"],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread", "-ldl"],
    )


MODULES = [extension("_kernels", SOURCES)]
MODULES += [extension(name, []) for name in ("_stack", "_gradients", "_arrays")]

setup(
    ext_modules=cythonize(
        MODULES,
        language_level=3,
        compiler_directives={"boundscheck": False, "wraparound": False, "freethreading_compatible": True},
        quiet=True,
    )
)
