# SPDX-License-Identifier: Apache-2.0
"""What the tests of the house share: which files there are, and which functions are in them."""

import ast
import json
import os
import re
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
BUILT = re.compile(r"(^|/)(build|dist|\.build|\.venv[^/]*|__pycache__)/")


def files(*patterns: str) -> list[Path]:
    """The files of the source tree that match, without what a build or an environment leaves there."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not BUILT.search(path.relative_to(ROOT).as_posix()))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


C_FILES = files("csrc/**/*.[ch]")
TEMPLATES = [path for path in C_FILES if path.name.endswith(".inc.h")]
PYTHON_FILES = files("selfattn/**/*.py")
CYTHON_MODULES = files("selfattn/**/*.pyx")
CYTHON_FILES = files("selfattn/**/*.pyx", "selfattn/**/*.pxd")
TYPE_STUBS = files("selfattn/**/*.pyi")
SOURCES = [*C_FILES, *PYTHON_FILES, *CYTHON_FILES, *TYPE_STUBS]

needs_the_sources = pytest.mark.skipif(not C_FILES, reason="these are rules for the source tree")


def sources_are_tested() -> bool:
    """Whether `import selfattn` finds the source tree, by PYTHONPATH or an editable install (make dev)."""
    installed = json.loads(distribution("selfattn").read_text("direct_url.json") or "{}")
    return "PYTHONPATH" in os.environ or installed.get("dir_info", {}).get("editable", False)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def offenders(paths, pattern, *, allowed=()):
    """The lines of the files that match, as file:line: text."""
    return [
        f"{name(path)}:{number}: {line.strip()}"
        for path in paths
        if path.name not in allowed
        for number, line in enumerate(lines_of(path), 1)
        if re.search(pattern, line)
    ]


class Function(NamedTuple):
    path: Path
    name: str
    parameters: int  # without those that can be given by keyword only
    lines: int  # without the docstring
    body: str

    def __str__(self):
        return f"{name(self.path)}: {self.name}"


def count(parameters: str) -> int:
    """How many there are in the text between the parentheses."""
    while (flat := re.sub(r"\([^()]*\)|\[[^][]*\]", "", parameters)) != parameters:
        parameters = flat
    taken = []
    for part in (part.strip() for part in parameters.split(",")):
        if part.startswith("*") and not part.strip("* "):
            break  # keyword only from here on
        taken.append(part)
    return len([part for part in taken if part not in ("", "/", "void", "self", "cls")])


def c_functions(path: Path):
    """In our style a function's braces alone stand in column 0."""
    lines = lines_of(path)
    start = None
    for number, line in enumerate(lines):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            first = start
            while first and lines[first - 1] and not re.match(r"[#}/]| \*|.*;$", lines[first - 1]):
                first -= 1
            head = re.sub(r"__attribute__\(\(.*?\)\)", "", " ".join(lines[first:start]))
            called, parameters = re.search(r"(\w+)\((.*)\)\s*$", head).groups()
            yield Function(
                path, called, count(parameters), number - start + 1, "\n".join(lines[start:number])
            )
            start = None


def cython_functions(path: Path):
    """From def, cdef or cpdef to the next line that is indented as little."""
    text = path.read_text(encoding="utf-8")
    head = re.compile(r"^( *)(?:def|cp?def)\b[^\n=]*?(\w+)\(((?:[^()]|\([^()]*\))*)\)[^\n]*:\n", re.MULTILINE)
    for match in head.finditer(text):
        indent = len(match[1])
        body = re.match(rf"(?:[ \t]*\n|[ \t]{{{indent + 1},}}[^\n]*\n)*", text[match.end() :])[0].rstrip()
        body = re.sub(r'\A\s*"""(?:.|\n)*?"""\n?', "", body)
        yield Function(path, match[2], count(match[3]), body.count("\n") + 1, body)


def python_functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            taken = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            yield Function(path, node.name, len(taken), lines, "\n".join(map(ast.unparse, body)))


@cache
def functions() -> list[Function]:
    kinds = ((C_FILES, c_functions), (CYTHON_MODULES, cython_functions), (PYTHON_FILES, python_functions))
    return [function for paths, read in kinds for path in paths for function in read(path)]
