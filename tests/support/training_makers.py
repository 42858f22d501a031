# SPDX-License-Identifier: Apache-2.0
"""A toy model for the tests of training, word vectors, a hidden layer, classes, and its weights as a tree."""

import numpy as np

from selfattn.functional import linear, relu
from selfattn.train import clip_gradients, cross_entropy, warmup_cosine

WORDS, WIDTH, CLASSES, TOTAL = 40, 12, 5, 24


def toy_weights(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32) / 2

    layers = [
        {"weight": normal(WIDTH, WIDTH), "bias": normal(WIDTH)},
        {"weight": normal(WIDTH, CLASSES), "bias": None},
    ]
    return {"embedding": normal(WORDS, WIDTH), "layers": layers}


def toy_gradients(weights, rng, num_threads=None):
    """(loss, grads) on random words, whose class is their number modulo CLASSES."""
    words = rng.integers(0, WORDS, 16)
    first, last = weights["layers"]
    x = weights["embedding"][words]
    hidden = relu(linear(x, first["weight"], first["bias"], num_threads=num_threads))
    loss, grad = cross_entropy(linear(hidden, last["weight"], num_threads=num_threads), words % CLASSES)
    grad_hidden = linear(grad, last["weight"].T, num_threads=num_threads) * (hidden > 0)
    embedding = np.zeros_like(weights["embedding"])
    np.add.at(embedding, words, linear(grad_hidden, first["weight"].T, num_threads=num_threads))
    first_grads = {
        "weight": linear(x.T, grad_hidden, num_threads=num_threads),
        "bias": grad_hidden.sum(axis=0),
    }
    last_grads = {"weight": linear(hidden.T, grad, num_threads=num_threads), "bias": None}
    return loss, {"embedding": embedding, "layers": [first_grads, last_grads]}


def toy_run(weights, optimizer, rng, first=0, last=TOTAL):
    """The losses and the weights after the steps first ... last - 1 of a run of TOTAL."""
    losses = []
    for step in range(first, last):
        loss, grads = toy_gradients(weights, rng)
        clip_gradients(grads, 0.5)
        weights = optimizer.step(weights, grads, warmup_cosine(step, 3, TOTAL, peak=0.05, floor=0.001))
        losses.append(loss)
    return losses, weights
