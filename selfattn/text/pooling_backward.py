# SPDX-License-Identifier: Apache-2.0
"""From the gradients of sentence embeddings back to those of their tokens: `pooling.py` in reverse.

Arithmetic is in float64 and rounded to float32 once, sentence by sentence.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfattn.text.pooling import Floats, Offsets, require_modes


def pool_backward(
    grad_y: Floats, tokens: Floats, cu_seqlens: Offsets, modes: tuple[str, ...], *, skip: int = 0
) -> Floats:
    """grad_y (batch, len(modes) * d_model), of what `pool` gave for the other arguments -> (total, d_model).

    Of equal maxima the first one gets the gradient. Skipped tokens get zeros. Raises ValueError for a grad_y
    of another shape, and for a mode that is none of MODES.
    """
    require_modes(modes)
    batch, (total, d_model) = len(cu_seqlens) - 1, tokens.shape
    pooled = (batch, len(modes) * d_model)
    if grad_y.shape != pooled:
        raise ValueError(f"grad_y has shape {grad_y.shape}; pool gives {pooled} for these arguments")
    grads = np.zeros((total, d_model), dtype=np.float64)
    for i, of_modes in enumerate(grad_y.astype(np.float64).reshape(batch, len(modes), d_model)):
        first, last = int(cu_seqlens[i]), int(cu_seqlens[i + 1])
        if first < last:
            begin = first + min(skip, last - first - 1)
            for mode, grad in zip(modes, of_modes, strict=True):
                _add(mode, grad, tokens[begin:last], grads[begin:last], begin - first)
    return grads.astype(np.float32)


def _add(mode: str, grad: Any, rows: Floats, grads: Any, skip: int) -> None:
    """Adds what the pooled grad (d_model,) gives to the rows (length, d_model) that came into it."""
    if mode == "cls":
        grads[0] += grad
    elif mode == "lasttoken":
        grads[-1] += grad
    elif mode == "max":
        grads[rows.argmax(axis=0), np.arange(len(grad))] += grad
    elif mode == "mean":
        grads += grad / len(rows)
    elif mode == "mean_sqrt_len_tokens":
        grads += grad / np.sqrt(len(rows))
    else:  # weightedmean
        weights = skip + np.arange(1.0, len(rows) + 1)
        grads += weights[:, None] * grad / weights.sum()


def normalize_backward(grad_y: Floats, embeddings: Floats) -> Floats:
    """grad_y of `normalize(embeddings)` -> the gradient of the embeddings: what is along y does not count.

    A zero row has no direction to change, and gets zeros.
    """
    rows, grad = embeddings.astype(np.float64), grad_y.astype(np.float64)
    length = np.sqrt(np.add.reduce(rows * rows, axis=1, keepdims=True))
    y = rows / np.where(length == 0, 1, length)
    along = np.add.reduce(grad * y, axis=1, keepdims=True)
    return np.where(length == 0, 0, (grad - along * y) / np.where(length == 0, 1, length)).astype(np.float32)
