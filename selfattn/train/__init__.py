# SPDX-License-Identifier: Apache-2.0
"""Training encoders in NumPy: losses, AdamW, a schedule, checkpoints, a progress bar.

    rng, weights = np.random.default_rng(0), encoder.weights()
    optimizer = AdamW(weights)
    for step in range(total):
        x, targets = batch(rng)
        y, saved = encoder.forward(x)
        loss, grad_y = cross_entropy(y, targets)        # the classes are the columns of y
        _, grads = encoder.backward(saved, grad_y)
        clip_gradients(grads, 1.0)
        weights = optimizer.step(weights, grads, warmup_cosine(step, warmup, total, peak=1e-3))
        encoder = encoder.replace(weights)
    save_checkpoint("run.safetensors", weights, optimizer, total, rng)

Weights and gradients are trees: dicts and lists that end in float32 arrays (trees.py). Nothing depends on the
number of threads, and a run that stopped goes on from its checkpoint with the bits it would have had. Saving
and drawing need the packages of selfattn[train].
"""

from selfattn.train.checkpoints import load_checkpoint, save_checkpoint
from selfattn.train.loop import progress
from selfattn.train.losses import contrastive_loss, cross_entropy, masked_token_loss
from selfattn.train.optimizer import AdamW, clip_gradients
from selfattn.train.schedule import warmup_cosine
from selfattn.train.trees import flatten, unflatten

__all__ = [
    "AdamW",
    "clip_gradients",
    "contrastive_loss",
    "cross_entropy",
    "flatten",
    "load_checkpoint",
    "masked_token_loss",
    "progress",
    "save_checkpoint",
    "unflatten",
    "warmup_cosine",
]
