# SPDX-License-Identifier: Apache-2.0
"""What stacking is for: one cell, the same cells side by side, and layers in depth learn a small language.

    python examples/stacking.py [DIRECTORY FOR THE PICTURES, default build]

At every "it" of a sentence a reader must know five things at once: what "it" is, who does something with it,
near or for whom, which bracket this stands in, and what colour it has. The first four are words that one step
finds, each by a rule of its own; the colour takes two steps: from "it" to its noun, from there to the word
before. All models have as many weights; they differ in how their cells stand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stacking_language import ANSWERS, COLOURS, MAX_WORDS, VOCABULARY, Sentence, write_sentences

import selfattn
from selfattn import train
from selfattn.functional import linear, linear_backward
from selfattn.layers.embedding import embedding_backward

D_MODEL, HEAD_DIM = 64, 16
TRAIN, TEST, STEPS, BATCH = 20_000, 1_000, 1_200, 64

# ---- the reader ----

NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
ENDS = np.cumsum([len(words) for words in ANSWERS.values()])
COLUMNS = {  # where the scores of each question's answers stand
    question: slice(end - len(words), end)
    for (question, words), end in zip(ANSWERS.items(), ENDS.tolist(), strict=True)
}


class Batch:
    """Sentences packed one after another."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.sentences = sentences
        self.ids = np.array([NUMBER[word] for s in sentences for word in s.words])  # (tokens,)
        self.cu_seqlens = np.cumsum([0, *(len(s.words) for s in sentences)])
        self.positions = np.concatenate([np.arange(len(s.words)) for s in sentences])
        starts = self.cu_seqlens.tolist()
        self.places = np.array(
            [start + i for start, s in zip(starts, sentences, strict=False) for i in s.places]
        )
        self.targets = {  # question -> (questions,), which of its ANSWERS is right
            question: np.array([answers.index(word) for s in sentences for word in s.answered(question)])
            for question, answers in ANSWERS.items()
        }


class Reader:
    """Vectors for words and positions, an encoder that reads from left to right, a matrix for the answers.

    `weights` is all that is learned, as the optimizer takes it.
    """

    def __init__(self, num_layers: int, num_heads: int, d_ff: int, rng: np.random.Generator) -> None:
        def norm() -> selfattn.LayerNorm:
            return selfattn.LayerNorm(np.ones(D_MODEL, np.float32), np.zeros(D_MODEL, np.float32))

        def layer() -> selfattn.EncoderLayer:
            attention = selfattn.MultiHeadSelfAttention.initialize(
                D_MODEL, num_heads, head_dim=HEAD_DIM, bias=True, causal=True, rng=rng
            )
            feed_forward = selfattn.FeedForward.initialize(D_MODEL, d_ff, rng=rng)
            return selfattn.EncoderLayer(attention, norm(), feed_forward, norm(), norm_first=True)

        self.encoder = selfattn.Encoder([layer() for _ in range(num_layers)], norm())
        self.weights = {
            "words": normal(rng, 1.0, len(VOCABULARY), D_MODEL),
            "positions": normal(rng, 0.3, MAX_WORDS, D_MODEL),
            "encoder": self.encoder.weights(),
            "answer_weight": normal(rng, D_MODEL**-0.5, D_MODEL, ENDS[-1]),
            "answer_bias": np.zeros(ENDS[-1], np.float32),
        }

    def take(self, weights: dict[str, Any]) -> None:
        self.weights = weights
        self.encoder = self.encoder.replace(weights["encoder"])

    def embed(self, batch: Batch) -> np.ndarray:
        """(tokens, D_MODEL)"""
        return self.weights["words"][batch.ids] + self.weights["positions"][batch.positions]

    def score(self, hidden: np.ndarray) -> np.ndarray:
        """(questions, D_MODEL) -> (questions, all answers)"""
        return linear(hidden, self.weights["answer_weight"], self.weights["answer_bias"])

    def gradients(self, batch: Batch, num_threads: int | None = None) -> tuple[float, dict[str, Any]]:
        """The loss, summed over the questions, and the gradient of every weight."""
        y, saved = self.encoder.forward(
            self.embed(batch), cu_seqlens=batch.cu_seqlens, num_threads=num_threads
        )
        hidden = y[batch.places]
        scores, loss = self.score(hidden), 0.0
        grad_scores = np.empty_like(scores)
        for question, columns in COLUMNS.items():
            part, grad_scores[:, columns] = train.cross_entropy(scores[:, columns], batch.targets[question])
            loss += part
        grad_hidden, grad_weight, grad_bias = linear_backward(
            grad_scores, hidden, self.weights["answer_weight"], bias=True
        )
        grad_y = np.zeros_like(y)
        grad_y[batch.places] = grad_hidden
        grad_x, of_encoder = self.encoder.backward(saved, grad_y, num_threads=num_threads)
        return loss, {
            "words": embedding_backward(grad_x, batch.ids, len(VOCABULARY)),
            "positions": embedding_backward(grad_x, batch.positions, MAX_WORDS),
            "encoder": of_encoder,
            "answer_weight": grad_weight,
            "answer_bias": grad_bias,
        }

    def accuracy(self, batch: Batch) -> dict[str, float]:
        """The share of right answers to each question."""
        y = self.encoder(self.embed(batch), cu_seqlens=batch.cu_seqlens)
        scores = self.score(y[batch.places])
        return {
            question: float((scores[:, columns].argmax(axis=1) == batch.targets[question]).mean())
            for question, columns in COLUMNS.items()
        }

    def attention_weights(self, batch: Batch) -> np.ndarray:
        """(layers, sentences, heads, MAX_WORDS or less, the same)"""
        where: dict[str, Any] = {"cu_seqlens": batch.cu_seqlens}
        inputs = self.encoder.hidden_states(self.embed(batch), **where)
        layers = zip(self.encoder.layers, inputs, strict=False)
        return np.stack([layer.attention_weights(x, **where) for layer, x in layers])


def normal(rng: np.random.Generator, size: float, *shape: int) -> np.ndarray:
    return (size * rng.standard_normal(shape)).astype(np.float32)


def learn(
    reader: Reader,
    optimizer: train.AdamW,
    sentences: Sequence[Sentence],
    rng: np.random.Generator,
    steps: range,
    *,
    total: int = STEPS,
    num_threads: int | None = None,
) -> None:
    """The steps of a run of `total` steps. The same rng and steps give the same weights, on any threads."""
    with train.progress(total, first=steps.start) as report:
        for step in steps:
            batch = Batch([sentences[i] for i in rng.integers(len(sentences), size=BATCH)])
            loss, grads = reader.gradients(batch, num_threads)
            train.clip_gradients(grads, 1.0)
            lr = train.warmup_cosine(step, warmup=total // 10, total=total, peak=3e-3, floor=1e-4)
            reader.take(optimizer.step(reader.weights, grads, lr))
            report(loss=loss)


def new_optimizer(reader: Reader) -> train.AdamW:
    return train.AdamW(reader.weights, betas=(0.9, 0.98), weight_decay=0.3)


# ---- what comes out ----

MODELS = {  # layers, cells in each, width of the feed-forward networks: about 98,000 weights in each encoder
    "1 cell": (1, 1, 736),
    "4 cells side by side": (1, 4, 640),
    "4 cells, 2 layers": (2, 4, 256),
    "4 cells, 3 layers": (3, 4, 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?", type=Path, default=Path("build"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)

    sentences = write_sentences(TRAIN + TEST, np.random.default_rng(0))
    learned, held_out = sentences[:TRAIN], Batch(sentences[TRAIN:])
    example = find_example(sentences[TRAIN:])
    describe(example)
    print(f"{TRAIN:,} sentences to learn from; right answers on {TEST:,} others:\n")
    print(row("", *ANSWERS, "weights", "seconds"))
    print(row("the commonest answer", *percent(commonest(learned, held_out))))
    print(row("any such word before", *percent(any_such_word(held_out))))
    readers = {}
    for name, (layers, heads, d_ff) in MODELS.items():
        started = time.perf_counter()
        reader = readers[name] = Reader(layers, heads, d_ff, np.random.default_rng(1))
        learn(reader, new_optimizer(reader), learned, np.random.default_rng(2), range(STEPS))
        size = sum(array.size for array in train.flatten(reader.encoder.weights()).values())
        numbers = f"{size:,}", f"{time.perf_counter() - started:.0f}"
        print(row(name, *percent(reader.accuracy(held_out)), *numbers))

    shown = {name: readers[name] for name in list(MODELS)[1:3]}
    for name, reader in shown.items():
        print(f"\n{name}: right answers lost when a cell is silent\n")
        for cell, shares in zip(cell_names(reader), lost(reader, held_out), strict=True):
            print(row(cell, *(f"{round(share, 2) + 0.0:.0%}" for share in shares)))  # -0 is 0
    draw(directory / "stacking.svg", shown, held_out, example)
    print(f"\nAs a picture, with what the cells look at: {(directory / 'stacking.svg').resolve()}")


def describe(sentence: Sentence) -> None:
    print(" ".join(sentence.words))
    for i, place in enumerate(sentence.places):
        answers = (f"{question}: {sentence.answered(question)[i] or 'none'}" for question in ANSWERS)
        print(f"   it ({place}) {'   '.join(answers)}")
    print()


def row(name: str, *columns: str) -> str:
    return f"{name:<22}" + "".join(f"{column:>{max(8, len(column) + 2)}}" for column in columns)


def percent(accuracies: dict[str, float]) -> list[str]:
    return [f"{accuracy:.1%}" for accuracy in accuracies.values()]


def commonest(learned: Sequence[Sentence], held_out: Batch) -> dict[str, float]:
    """The accuracy of always giving the answer that is right most often."""
    targets = Batch(learned).targets
    return {
        question: float((right == np.bincount(targets[question]).argmax()).mean())
        for question, right in held_out.targets.items()
    }


def any_such_word(batch: Batch) -> dict[str, float]:
    """The accuracy of giving any of the words before "it" that could be an answer ("" among the brackets)."""

    def chance(sentence: Sentence, question: str) -> Iterable[float]:
        for place, right in zip(sentence.places, sentence.answered(question), strict=True):
            before = ["", *sentence.words[:place]]
            candidates = [word for word in before if word in ANSWERS[question]]
            yield candidates.count(right) / len(candidates)

    return {
        question: float(np.mean([share for s in batch.sentences for share in chance(s, question)]))
        for question in ANSWERS
    }


def lost(reader: Reader, batch: Batch) -> np.ndarray:
    """Which cell took which relation: (cells, questions), how much of the accuracy goes with a cell.

    A cell is silent when its rows of the output matrix are 0.
    """
    weights, whole, losses = reader.weights, np.array([*reader.accuracy(batch).values()]), []
    for i, layer in enumerate(reader.encoder.layers):
        name = f"layers.{i}.attention.output_weight"
        for head in range(layer.attention.num_heads):
            flat = train.flatten(weights["encoder"])
            flat[name] = flat[name].copy()
            flat[name][head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
            reader.take(weights | {"encoder": train.unflatten(flat, weights["encoder"])})
            losses.append(whole - [*reader.accuracy(batch).values()])
    reader.take(weights)
    return np.stack(losses)


def seen(reader: Reader, batch: Batch) -> np.ndarray:
    """(cells, questions): how much of its attention each cell gives, at "it", to the word that answers."""
    weights = reader.attention_weights(batch)
    shares = []
    for question in ANSWERS:
        found = [
            (b, place, answer)
            for b, sentence in enumerate(batch.sentences)
            for place, answer in zip(sentence.places, sentence.answers[question], strict=True)
            if answer is not None
        ]
        b, place, answer = np.transpose(found)
        shares.append(weights[:, b, :, place, answer].mean(axis=0).reshape(-1))
    return np.stack(shares, axis=1)


def cell_names(reader: Reader) -> list[str]:
    layers = enumerate(reader.encoder.layers, 1)
    return [f"layer {i}, cell {j + 1}" for i, layer in layers for j in range(layer.attention.num_heads)]


def find_example(sentences: Sequence[Sentence]) -> Sentence:
    """One whose last "it" stands in a bracket, and nearer to another colour than to its own."""
    for sentence in sentences:
        own, place = sentence.answers["colour"][-1], sentence.places[-1]
        others = [word for word in sentence.words[own + 1 : place] if word in COLOURS]
        if sentence.answers["bracket"][-1] is not None and others:
            return sentence
    return sentences[0]


def draw(path: Path, readers: dict[str, Reader], batch: Batch, example: Sentence) -> None:
    """For every cell: what is lost without it, how much it looks at the answers, and one sentence: what it
    looks at where the last "it" stands.
    """
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"  # text stays text
    pyplot.rcParams["svg.hashsalt"] = path.name  # the same picture is the same file
    cells = [len(cell_names(reader)) for reader in readers.values()]
    place = example.places[-1]
    words = example.words[: place + 1]  # it reads from left to right
    figure, axes = pyplot.subplots(
        len(readers),
        3,
        figsize=(12, 1.9 + 0.3 * sum(cells)),
        height_ratios=cells,
        width_ratios=(len(ANSWERS), len(ANSWERS), len(words)),
        layout="constrained",
    )
    for (name, reader), row_of_axes in zip(readers.items(), axes, strict=True):
        at_it = reader.attention_weights(Batch([example]))[:, 0, :, place, : place + 1]
        panels = lost(reader, batch), seen(reader, batch), at_it.reshape(-1, place + 1)
        for ax, shares, cmap in zip(row_of_axes, panels, ("Oranges", "Blues", "Blues"), strict=True):
            ax.imshow(shares, cmap=cmap, vmin=0, vmax=1, aspect="auto")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.tick_params(length=0)
            ax.spines[:].set_color("#c3cad3")
        row_of_axes[0].set_yticks(range(len(panels[0])), cell_names(reader), fontsize=8)
        row_of_axes[0].set_title(name, fontsize=10, loc="left")
    captions = "lost without", "looked at", "looked at in this sentence, from its last word"
    columns = ANSWERS, ANSWERS, words
    for top, bottom, labels, caption in zip(axes[0], axes[-1], columns, captions, strict=True):
        top.xaxis.tick_top()
        top.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        bottom.set_xlabel(caption, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
