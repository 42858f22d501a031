# SPDX-License-Identifier: Apache-2.0
"""The whole road in one sentence: words, vectors, positions, one cell, cells side by side, layers in depth.

    python examples/walk_the_road.py

The weights are random (seeded), so the numbers mean nothing yet; the shapes, and what each step adds, are
those of a trained model.
"""

import numpy as np

import selfattn

SENTENCE = "The pizza came out of the oven and it tasted good"
D_MODEL, HEAD_DIM, NUM_HEADS, NUM_LAYERS = 64, 16, 4, 3


def step(number: int, title: str, array: np.ndarray, adds: str) -> None:
    print(f"\n{number}. {title}  {' x '.join(map(str, array.shape))}\n   {adds}")


def bars(words: list[str], weights: np.ndarray) -> None:
    """One line per word: how much of the attention it gets."""
    for word, weight in zip(words, weights, strict=True):
        print(f"   {word:>8} {weight:5.1%} {'#' * round(60 * weight)}")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def main() -> None:
    rng = np.random.default_rng(7)
    words = SENTENCE.split()
    it = words.index("it")
    first_the, second_the = (i for i, word in enumerate(words) if word.lower() == "the")

    print(SENTENCE)
    step(1, "words", np.array(words), "Nothing a matrix could multiply yet.")

    table = {word: rng.standard_normal(D_MODEL) for word in dict.fromkeys(SENTENCE.lower().split())}
    vectors = np.stack([table[word.lower()] for word in words]).astype(np.float32)
    step(2, "vectors", vectors, "A word becomes a vector, the same wherever it stands.")
    print(f"   'The' at {first_the} and 'the' at {second_the}: cosine ", end="")
    print(f"{cosine(vectors[first_the], vectors[second_the]):.3f}")

    x = vectors + selfattn.sinusoidal_positions(len(words), D_MODEL)
    step(3, "+ positions", x, "Where it stands is now written into its vector.")
    print(f"   'The' at {first_the} and 'the' at {second_the}: cosine ", end="")
    print(f"{cosine(x[first_the], x[second_the]):.3f}")

    cells = [selfattn.SelfAttentionCell.initialize(D_MODEL, HEAD_DIM, rng=rng) for _ in range(NUM_HEADS)]
    values = cells[0](x)
    step(
        4, "one cell", values, "Query meets key, softmax, weighted sum of values: each word with its context."
    )
    print("   What 'it' attends to:")
    bars(words, cells[0].attention_weights(x)[it])

    output_weight = (rng.standard_normal((NUM_HEADS * HEAD_DIM, D_MODEL)) / 8).astype(np.float32)
    heads = selfattn.MultiHeadSelfAttention.from_cells(cells, output_weight)
    together = heads(x)
    step(
        5,
        f"{NUM_HEADS} cells side by side",
        together,
        "Each with its own weights, free to find its own relation.",
    )
    for number, weights in enumerate(heads.attention_weights(x)[:, it]):
        top = ", ".join(f"{words[i]} {weights[i]:.0%}" for i in np.argsort(-weights)[:3])
        print(f"   cell {number}: 'it' looks at {top}")

    layers = [
        selfattn.EncoderLayer.initialize(D_MODEL, NUM_HEADS, 4 * D_MODEL, rng=rng) for _ in range(NUM_LAYERS)
    ]
    encoder = selfattn.Encoder(layers)
    states = encoder.hidden_states(x)
    step(
        6,
        f"{NUM_LAYERS} layers in depth",
        states[-1],
        "Attention, feed-forward, residuals and norms, stacked.",
    )
    print("   How much of itself each word keeps (cosine to where it started):")
    for depth, state in enumerate(states):
        kept = np.mean([cosine(before, after) for before, after in zip(x, state, strict=True)])
        print(f"   after {depth} layers {kept:6.3f} {'#' * round(40 * kept)}")

    alone = encoder(x)
    batch = np.zeros((2, len(words) + 5, D_MODEL), np.float32)
    batch[1, : len(words)] = x
    padded = encoder(batch, lengths=[3, len(words)])[1, : len(words)]
    same = "the same bits" if np.array_equal(alone, padded) else "other bits"
    print(f"\nThe sentence alone and padded in a batch with another: {same}.")


if __name__ == "__main__":
    main()
