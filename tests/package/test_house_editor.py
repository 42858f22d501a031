# SPDX-License-Identifier: Apache-2.0
"""An editor understands each C file when it opens it by itself: every one compiles alone, templates too."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.house import C_FILES, ROOT, TEMPLATES, name, needs_the_sources

pytestmark = needs_the_sources

FLAGS = (ROOT / "compile_flags.txt").read_text(encoding="ascii").split() if C_FILES else []


def errors(compiler, path):
    """The first lines of what the compiler says, or nothing."""
    command = [compiler, *FLAGS, "-w", "-fsyntax-only", name(path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if process.returncode == 0 else "\n".join(process.stderr.splitlines()[:3])


@pytest.mark.parametrize("compiler", ["gcc", pytest.param("clang", marks=pytest.mark.slow)])
def test_every_template_compiles_alone(compiler):
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    assert len(TEMPLATES) > 10
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(errors, [compiler] * len(TEMPLATES), TEMPLATES))
    assert not [error for error in found if error]
