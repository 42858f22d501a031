# SPDX-License-Identifier: Apache-2.0
"""The shape of the sources: length, width, number of arguments; nothing twice, no file inside another."""

from collections import defaultdict

from support.house import (
    C_FILES,
    CYTHON_FILES,
    SOURCES,
    files,
    functions,
    lines_of,
    name,
    needs_the_sources,
    offenders,
)

pytestmark = needs_the_sources

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60  # and about 40
MOST_PARAMETERS = {".c": 9, ".h": 9, ".pyx": 12, ".py": 9}  # keyword-only ones are not counted

# Functions that took more before there was the rule, and how many. The list gets shorter, never longer.
MANY_PARAMETERS = {
    "tile": 11,
    "multiply_long": 11,
    "multiply_nv": 10,
    "multiply_values": 10,
}

SCRIPTS = files("*.py", "bench/**/*.py", "examples/**/*.py", "tests/**/*.py", "docs/**/*.py")
WITH_LICENCE = [
    *SOURCES,
    *SCRIPTS,
    *files("tests/**/*.[ch]", "selfattn/**/*.js", "selfattn/**/*.css", "**/*.sh", ".ci/run"),
]


def test_functions_are_found():
    found = defaultdict(int)
    for function in functions():
        found[function.path.suffix] += 1
    assert min(found[suffix] for suffix in (".c", ".h", ".pyx", ".py")) > 50


def test_no_file_is_long():
    assert not [name(path) for path in SOURCES if len(lines_of(path)) > MOST_LINES_OF_A_FILE]


def test_no_function_is_long():
    long = [f for f in functions() if f.lines > MOST_LINES_OF_A_FUNCTION]
    assert not [f"{f} has {f.lines} lines" for f in long]


def test_no_function_takes_many_parameters():
    many = [f for f in functions() if f.parameters > MOST_PARAMETERS[f.path.suffix]]
    assert not [f"{f} takes {f.parameters}" for f in many if f.parameters > MANY_PARAMETERS.get(f.name, 0)]
    assert not set(MANY_PARAMETERS) - {f.name for f in many}, "take these out of the table"


def test_no_line_is_wide():
    """In C and Cython, comments included; ruff looks at Python and at the stubs."""
    assert not offenders([*C_FILES, *CYTHON_FILES], r"^.{121}")


def test_no_helper_is_written_twice():
    """The same name and the same body in two files. Each instruction set has its own runs_here."""
    places = defaultdict(set)
    for function in functions():
        if "\n" in function.body.strip("{}\n ") and function.name not in ("runs_here", "__init__"):
            places[function.name, function.body].add(name(function.path))
    assert not {called: sorted(where) for (called, _), where in places.items() if len(where) > 1}


def test_nothing_is_included_in_the_middle_of_a_file():
    """An #include behind a function; the kernels themselves stand inside the target region of their stub."""
    late = []
    for path in C_FILES:
        lines = lines_of(path)
        first = lines.index("{") if "{" in lines else len(lines)
        late += [f"{name(path)}: {line}" for line in lines[first:] if line.startswith("#include")]
    assert not [line for line in late if not line.endswith('kernels.inc.h"')]
    assert not [*files("selfattn/**/*.pxi"), *offenders(CYTHON_FILES, r"^\s*include\b")]


def test_what_has_to_agree_is_asserted():
    assert len(offenders(C_FILES, r"^\s*_Static_assert\(")) >= 6


def test_every_source_names_its_licence():
    """In the first line, or the second, behind a `#!`."""
    comment = {".c": "/* {} */", ".h": "/* {} */", ".css": "/* {} */", ".js": "// {}"}
    missing = []
    for path in WITH_LICENCE:
        line = comment.get(path.suffix, "# {}").format("SPDX-License-Identifier: Apache-2.0")
        if next((text for text in lines_of(path) if not text.startswith("#!")), line) != line:
            missing.append(name(path))
    assert not missing
