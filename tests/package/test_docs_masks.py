# SPDX-License-Identifier: Apache-2.0
"""docs/masks.md: its program runs, and its pictures are what the operators compute, drawn anew."""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import selfattn
from selfattn import reference

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "masks.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"
OPERATORS = (
    "attention",
    "attention_weights",
    "attention_column_sums",
    "varlen_attention",
    "paged_attention",
)

masks = SimpleNamespace(**runpy.run_path(str(DOCS / "draw_masks.py")))
committed = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "masks").glob("*.svg")}
shown = re.findall(r"^!\[(.+)\]\(masks/(\w+)\.svg\)$", PAGE, flags=re.MULTILINE)


def assert_as_committed(drawn):
    assert drawn.keys() == committed.keys()
    differ = [name for name in drawn if drawn[name] != committed[name]]
    assert not differ, f"{differ}: python docs/draw_masks.py draws them anew"


@pytest.fixture
def specification(monkeypatch):
    """The variables of the page's program, run with selfattn.reference."""
    for name in OPERATORS:
        monkeypatch.setattr(selfattn, name, getattr(reference, name))
    return masks.run(PAGE)


def test_the_program_says_what_the_kernels_compute(capsys):
    drawn = masks.draw(masks.run(PAGE))
    said = re.findall(r"^print\(.*\)  # (.*)$", masks.program(PAGE), flags=re.MULTILINE)
    assert len(said) >= 3
    assert capsys.readouterr().out.splitlines() == said
    assert_as_committed(drawn)


def test_the_specification_draws_the_same_pictures(specification):
    assert_as_committed(masks.draw(specification))


def test_the_page_shows_every_picture_once_and_says_what_is_on_it():
    assert sorted(name for _, name in shown) == sorted(committed)
    assert not [name for alternative, name in shown if len(alternative) < 12]


def test_links_lead_to_headings():
    links = re.findall(r"\]\(([\w.]*)#([\w-]+)\)", PAGE)
    assert len(links) >= 2
    for page, anchor in links:
        text = (DOCS / (page or "masks.md")).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(committed))
def test_a_picture_follows_the_code_that_makes_it(name):
    before = PAGE[: PAGE.index(f"(masks/{name}.svg)")]
    block = re.findall(r"^```python\n(.*?)^```$", before, flags=re.MULTILINE | re.DOTALL)[-1]
    assert re.search(rf"^{name} = ", block, flags=re.MULTILINE)


@pytest.mark.parametrize("name", sorted(committed))
def test_a_picture_is_small_and_plain(name):
    picture = committed[name]
    assert len(picture) < 12_000
    elements = {element.tag.removeprefix(SVG) for element in ET.fromstring(picture).iter()}
    assert elements <= {"svg", "style", "rect", "path", "polyline", "text"}


def squares(picture):
    """{(column, row): opacity} of the cells that are not pale, in cells from the first."""
    found = {}
    for path in ET.fromstring(picture).iter(f"{SVG}path"):
        if path.get("class") in ("on", "sink"):
            for x, y in re.findall(r"M(\d+) (\d+)", path.get("d")):
                cell = (int(x) - masks.LEFT) // masks.STEP, (int(y) - masks.TOP) // masks.STEP
                found[cell] = float(path.get("opacity", 1))
    return found


def test_rows_are_queries_and_shades_compare_a_row():
    weights = np.array([[0.4, 0.2, 0.0], [0.0, 0.0, 0.0], [0.01, 0.0, 0.99]])
    assert squares(masks.Grid("three").draw(weights)) == {(0, 0): 1, (1, 0): 0.5, (2, 2): 1}


def test_a_cell_is_strong_where_a_query_attends():
    causal = {(key, query) for query in range(8) for key in range(query + 1)}
    assert squares(committed["causal"]) == dict.fromkeys(causal, 1)
    chunk = {(key, query) for query in range(5) for key in range(query + 1, query + 4)}
    assert squares(committed["chunk_window"]) == dict.fromkeys(chunk, 1)


def test_last_bits_do_not_show(specification, rng):
    for _ in range(5):
        moved = {
            name: specification[name] * (1 + rng.uniform(-1e-6, 1e-6, specification[name].shape))
            for name in committed
        }
        assert_as_committed(masks.draw(moved))
