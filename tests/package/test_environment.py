# SPDX-License-Identifier: Apache-2.0
"""What the environment says to `import selfattn`: the instruction set, a folder that is not built."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from support.house import sources_are_tested

import selfattn


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "name", ["sse9", "AVX2", " ", "neon" if "neon" not in selfattn.available_isas() else "avx2"]
)
def test_an_instruction_set_that_is_not_here(name):
    process = run_python("import selfattn", SELFATTN_ISA=name)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert re.match("ImportError: ", last), last
    assert repr(name) in last
    for available in selfattn.available_isas():
        assert available in last


@pytest.mark.skipif(sources_are_tested(), reason="the source tree is tested")
def test_a_source_folder_that_is_not_built(tmp_path):
    """It hides the installed package from whoever starts Python beside it."""
    package = tmp_path / "selfattn"
    package.mkdir()
    shutil.copy(selfattn.__file__, package)
    process = run_python("import selfattn", PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    for said in ("ImportError: ", str(package), "_native", "build_ext --inplace", "another directory"):
        assert said in last


@pytest.mark.parametrize("name", selfattn.available_isas())
def test_a_forced_instruction_set(name):
    process = run_python("import selfattn; print(selfattn.active_isa())", SELFATTN_ISA=name)
    assert process.stdout.strip() == name, process.stderr


def test_an_unset_instruction_set_is_the_best_one():
    process = run_python("import selfattn; print(selfattn.active_isa())", SELFATTN_ISA="")
    assert process.stdout.strip() == selfattn.available_isas()[0], process.stderr
