# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled modules: every .pyx of the package, one of them with the kernels (all of csrc) inside.

Objects compile side by side on all cores, and only where something changed: the compiler writes down which
files an object was made of (-MMD), and we write down the command. What is built stays in build/.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off"]  # the same arithmetic on every machine
FLAGS += ["-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-MMD"]
FLAGS += os.environ.get("SELFATTN_CFLAGS", "").split()
KERNELS = "selfattn._native.runtime"  # the one module that links csrc
GENERATED = Path("build/cython")


def posix(paths) -> list[str]:
    return sorted(path.as_posix() for path in paths)


def extension(source: str) -> Extension:
    return Extension(
        source.removesuffix(".pyx").replace("/", "."),
        sources=[source],
        include_dirs=["csrc"],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread", "-ldl"],
    )


def generate(sources: list[str]) -> list[Extension]:
    """The modules, translated to C in build/cython where that is older than the source or this file."""
    generated = [GENERATED / source.replace(".pyx", ".c") for source in sources]
    this = Path(__file__).stat().st_mtime
    return cythonize(
        [extension(source) for source in sources],
        language_level=3,
        # Not freethreading_compatible: without the GIL nothing is tested, so that importing us keeps the GIL.
        compiler_directives={"boundscheck": False, "wraparound": False},
        build_dir=str(GENERATED),
        force=any(path.exists() and path.stat().st_mtime < this for path in generated) or None,
        quiet=True,
    )


def is_up_to_date(target: Path, command: str) -> bool:
    """Whether the object was made by this command, after the last change of each file that it was made of."""
    record, made_of = target.with_suffix(".command"), target.with_suffix(".d")
    try:
        time = target.stat().st_mtime_ns
        files = made_of.read_text(encoding="utf-8").replace("\\\n", " ").partition(": ")[2].split()
        return record.read_text(encoding="utf-8") == command and all(
            os.stat(f).st_mtime_ns <= time for f in files
        )
    except OSError:  # something is not there
        return False


class BuildObjects(build_ext):
    """build_ext that compiles all objects of all modules in one pool of threads; `-j N` says how many."""

    def build_extensions(self):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(self.parallel or cores) as self.pool:
            self.compiler.compile = self.compile_objects
            self.force = True  # each module is looked at; is_up_to_date decides
            self.parallel = len(self.extensions)  # each waits in a thread of its own
            if self.editable_mode:  # pip would have the objects thrown away
                self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"
            super().build_extensions()

    def compile_objects(
        self,
        sources,
        output_dir=None,
        macros=None,
        include_dirs=None,
        debug=False,
        extra_preargs=None,
        extra_postargs=None,
        depends=None,
    ):
        """In place of distutils' CCompiler.compile, which goes from one object to the next."""
        compiler = self.compiler
        _, objects, options, includes, build = compiler._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs
        )
        arguments = compiler._get_cc_args(includes, debug, extra_preargs)

        def compile_object(target: str) -> None:
            source, suffix = build[target]
            command = " ".join([*compiler.compiler_so, *arguments, *options, source])
            if not is_up_to_date(Path(target), command):
                Path(target).unlink(missing_ok=True)
                compiler._compile(target, source, suffix, arguments, options, includes)
                Path(target).with_suffix(".command").write_text(command, encoding="utf-8")

        list(self.pool.map(compile_object, objects))
        return objects


modules = generate(posix(Path("selfattn").rglob("*.pyx")))
for module in modules:
    if module.name == KERNELS:
        module.sources += posix(Path("csrc").rglob("*.c"))

setup(cmdclass={"build_ext": BuildObjects}, ext_modules=modules)
