# SPDX-License-Identifier: Apache-2.0
"""The pages are short, plain English, and lead somewhere: lengths, columns, sentences, links, shorthand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("bench", "csrc")),
    )
)
READ_BY_STRANGERS = [page for page in PAGES if page in ("README.md", "DESIGN.md") or page.startswith("docs/")]
BANNED = (
    "by the day",
    "run it again",
    "Once the package is published",
    "measured again, the machine gave less",
)
MOST_LINES = {"README.md": 150, "DESIGN.md": 250}
MOST_COLUMNS = 120
USUAL_WORDS, MOST_WORDS = 25, 40


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Without fenced and indented code, and without the tables that the benchmark writes."""
    text = re.sub(r"^<!-- bench:.*?^<!-- /bench -->$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?:(?<=\n\n)|\A)(?: {4}(?![-*] ).*\n)+", "", text)


def paragraphs(text: str) -> list[str]:
    """Running text: what is no code, table, heading, picture or comment; an item of a list is a paragraph."""
    found: list[list[str]] = [[]]
    for line in without_code(text).splitlines():
        bare = re.sub(r"^(?:>\s*)+", "", line.strip())
        if not bare or re.match(r"[|#]|<!--|!\[", bare):
            found.append([])
        elif re.match(r"(?:[-*]|\d+\.)\s", bare):
            found.append([re.sub(r"^(?:[-*]|\d+\.)\s+", "", bare)])
        else:
            found[-1].append(bare)
    return [" ".join(lines) for lines in found if lines]


def sentences(text: str) -> list[str]:
    """Split after . ! ? before a space; a link is its text, a piece of code one word."""
    found = []
    for paragraph in paragraphs(text):
        plain = re.sub(r"`[^`]+`", "Code", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        found += re.split(r"(?<=[.!?])[)*\"]*\s+(?=[^a-z\s])", plain)
    return found


def words(sentence: str) -> int:
    return sum(any(character.isalnum() for character in word) for word in sentence.split())


def headings(page: str) -> set[str]:
    """The anchors that a page offers, as its readers' site makes them."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    titles = (title.strip().replace("`", "") for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_pages():
    assert {"README.md", "DESIGN.md", "SECURITY.md", "csrc/README.md", "docs/performance-notes.md"} <= set(
        PAGES
    )
    assert len(sentences(text_of("DESIGN.md"))) > 50


def test_sentences_are_found_and_counted():
    text = (
        "# No sentence\n\nOne `f(a, b)` two. Three\n[four five](six.md)!\n\n| 7 | 8 |\n\n- Nine, 2 x 3.\n\n"
    )
    text += "    code, code, code\n\n<!-- bench:one -->\nten eleven\n<!-- /bench -->\n"
    assert [words(sentence) for sentence in sentences(text)] == [3, 3, 4]


@pytest.mark.parametrize("page", MOST_LINES)
def test_a_page_is_short(page):
    assert len(text_of(page).splitlines()) <= MOST_LINES[page]


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_wide(page):
    text = re.sub(r"^<!-- bench:.*?^<!-- /bench -->$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    wide = [line for line in text.splitlines() if len(line) > MOST_COLUMNS]
    assert not [
        line for line in wide if not line.lstrip().startswith("|") and "](" not in line and "://" not in line
    ]


@pytest.mark.parametrize("page", PAGES)
def test_no_words_of_the_workshop(page):
    text = " ".join(text_of(page).split())
    assert not [phrase for phrase in BANNED if phrase in text]


@pytest.mark.parametrize("page", READ_BY_STRANGERS)
def test_no_sentence_is_very_long(page):
    assert not [sentence for sentence in sentences(text_of(page)) if words(sentence) > MOST_WORDS]


def test_sentences_are_short():
    counts = [words(sentence) for page in READ_BY_STRANGERS for sentence in sentences(text_of(page))]
    assert sum(count <= USUAL_WORDS for count in counts) >= 0.95 * len(counts)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(str(target.relative_to(ROOT))), link


def test_the_strangers_test_names_ten_folders():
    rows = re.findall(r"^\| .+ \| `([\w/]+)` \|$", text_of("CONTRIBUTING.md"), flags=re.MULTILINE)
    assert len(set(rows)) == len(rows) >= 10
    assert not [folder for folder in rows if not (ROOT / folder).is_dir()]


def test_the_kernels_page_has_a_line_for_each_file():
    sections = re.split(r"^## ", text_of("csrc/README.md"), flags=re.MULTILINE)
    listed = {
        f"{section.split()[0]}/{file}"
        for section in sections
        for file in re.findall(r"^\| `([\w.]+\.[ch])` \|", section, flags=re.MULTILINE)
    }
    assert listed == {str(path.relative_to(ROOT / "csrc")) for path in (ROOT / "csrc").glob("*/*.[ch]")}
