# SPDX-License-Identifier: Apache-2.0
"""What `import selfattn` brings, what loads later, and that no two modules import each other."""

import ast
import pickle
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import selfattn

ROOT = Path(__file__).resolve().parents[2]
PYTHON_FILES = sorted(ROOT.glob("selfattn/**/*.py"))
FORMS = [
    "attention",
    "attention_weights",
    "attention_column_sums",
    "varlen_attention",
    "paged_attention",
    "KVCache",
    "merge_attention",
    "attention_backward",
    "varlen_attention_backward",
]


def said_by(code: str) -> list[str]:
    """What a new process prints that runs this code."""
    process = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return process.stdout.split()


def test_what_loads_later_is_listed_and_there() -> None:
    names = said_by(
        "import selfattn; assert selfattn.layers.Encoder is selfattn.Encoder; print(*dir(selfattn))"
    )
    assert {"layers", *selfattn.__all__} <= set(names)


def test_import_loads_numpy_and_nothing_else() -> None:
    code = "import sys, numpy; before = set(sys.modules); import selfattn; print(*set(sys.modules) - before)"
    modules = set(said_by(code))
    loaded = {module.partition(".")[0] for module in modules}
    assert "selfattn" in loaded
    assert not {"selfattn.layers", "selfattn.functional", "dataclasses"} & modules
    assert (
        not {f"selfattn.attention.{name}" for name in ("backward", "cache", "merge", "packed", "paged")}
        & modules
    )
    cython_runtime = {module for module in loaded if module.startswith(("_cython", "cython_runtime"))}
    assert not loaded - sys.stdlib_module_names - cython_runtime - {"selfattn", "numpy"}


@pytest.mark.parametrize("name", selfattn.__all__)
def test_a_public_name_can_be_imported_first(name: str) -> None:
    assert said_by(f"from selfattn import {name}; import selfattn; print({name} is selfattn.{name})") == [
        "True"
    ]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    for module in (selfattn, sys.modules["selfattn.attention"]):
        with pytest.raises(AttributeError, match="no attribute 'varlen'"):
            _ = module.varlen


# ---- `attention` is a package and a function ----


@pytest.mark.parametrize(
    "first",
    [
        "import selfattn",
        "import selfattn; selfattn.varlen_attention",
        "import selfattn.attention.cache",
        "import selfattn.attention",
        "from selfattn.attention.paged import paged_attention",
        "import selfattn; selfattn.KVCache; import selfattn.attention.backward",
        "from importlib import import_module; import_module('selfattn.attention'); import selfattn",
        "import selfattn.reference, selfattn.layers, selfattn.train",
        "from selfattn import *",
    ],
)
def test_attention_is_the_function(first: str) -> None:
    code = f"{first}\nimport selfattn, types; print(type(selfattn.attention) is types.FunctionType)"
    assert said_by(code) == ["True"]


def test_the_package_has_every_form() -> None:
    from selfattn import attention as function
    from selfattn.attention import dense

    package = sys.modules["selfattn.attention"]
    assert package.attention is dense.attention is function
    for name in FORMS:
        assert getattr(package, name) is getattr(selfattn, name)
    assert set(FORMS) == set(package.__all__) <= set(dir(package))
    assert pickle.loads(pickle.dumps(function)) is function


def test_the_specification_has_functions_of_these_names() -> None:
    code = "import selfattn.reference.layers, selfattn.reference as r; print(*map(callable, FUNCTIONS))"
    functions = "r.attention, r.attention_backward"
    assert said_by(code.replace("FUNCTIONS", f"({functions})")) == ["True", "True"]


# ---- who imports whom ----


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Imports(ast.NodeVisitor):
    """The modules of ours that a module imports, inside functions too; not those for type checkers alone."""

    def __init__(self, modules: set[str]) -> None:
        self.modules, self.found = modules, set[str]()

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for part in node.orelse:
                self.visit(part)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names} & self.modules

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "a relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            self.found |= {inner if inner in self.modules else str(node.module)} & self.modules


def graph() -> dict[str, set[str]]:
    modules = {module_of(path) for path in [*PYTHON_FILES, *ROOT.glob("selfattn/**/*.pyx")]}
    edges = {}
    for path in PYTHON_FILES:
        imports = Imports(modules)
        imports.visit(ast.parse(path.read_text(encoding="utf-8")))
        edges[module_of(path)] = imports.found
    return edges


@pytest.mark.skipif(not PYTHON_FILES, reason="this is a rule for the source tree")
def test_no_two_modules_import_each_other() -> None:
    edges = graph()
    assert len(edges) > 60
    assert "selfattn.attention.dense" in edges["selfattn.attention"]
    list(TopologicalSorter(edges).static_order())  # CycleError names the modules of a cycle
