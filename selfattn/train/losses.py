# SPDX-License-Identifier: Apache-2.0
"""What a model is trained to make small. Each loss gives its value and its exact gradients.

Arrays are float32 or float64, in any form that the operators take, and gradients have their dtype.
Exponentials and sums are float64; products are selfattn.functional's: the number of threads changes no bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integer, as_integers, as_number
from selfattn.attention.arrays import Array, as_array
from selfattn.functional import linear

if TYPE_CHECKING:
    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray

BLOCK = 1 << 15  # float64 scores worked on at a time: they stay in the L2 cache


def cross_entropy(logits: AnyArray, targets: npt.ArrayLike, ignore: int = -100) -> tuple[float, Array]:
    """The mean of log Σ_c exp(logits[i, c]) - logits[i, targets[i]] over the rows i, and its gradient.

    logits (..., classes), targets (...) of integers -> (loss, grad_logits (..., classes)). Rows whose target
    is `ignore` count for nothing, whatever they hold: their gradient is 0. If all are, the loss is 0. Raises
    TypeError for a dtype, ValueError for shapes that do not fit and for a target that is not a class.
    """
    logits = _as_floats("logits", logits)
    labels = as_integers("targets", targets)
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"logits has shape {logits.shape}; it needs (..., classes), one class at least")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets has shape {labels.shape}; one for each row of logits is {logits.shape[:-1]}"
        )
    classes = logits.shape[-1]
    counted = labels != as_integer("ignore", ignore)
    _require_indices("targets", labels, counted, "classes", classes)
    rows, labels = logits.reshape(-1, classes), labels.reshape(-1)
    grad = np.zeros_like(rows, order="C", subok=False)
    loss = _mean_cross_entropy(rows, labels, np.flatnonzero(counted), grad)
    return loss, grad.reshape(logits.shape)


def contrastive_loss(
    a: AnyArray, b: AnyArray, scale: float = 20.0, *, symmetric: bool = False
) -> tuple[float, Array, Array]:
    """Does a[i] find its partner b[i] among all of b? cross_entropy of scale · cos(a[i], b[j]) over j.

    a (n, dim), b (m, dim) -> (loss, grad_a, grad_b). The partners of the others are the negatives; rows of b
    after the first n are nobody's partner and everyone's negatives (hard ones, chosen for that). scale is
    1 / temperature. symmetric=True: the mean of that and of b[i], i < n, finding a[i].

    InfoNCE, "Representation Learning with Contrastive Predictive Coding" (van den Oord, Li and Vinyals 2018);
    in-batch negatives, Henderson et al. 2017; symmetric, "CLIP" (Radford et al. 2021). Raises TypeError for a
    dtype, ValueError for shapes that do not fit and for a row of zeros, which has no direction.
    """
    a, b, scale = _as_matrix("a", a), _as_matrix("b", b), as_number("scale", scale)
    _require_same_dtype("a", a, "b", b)
    n = len(a)
    if not n or a.shape[1] != b.shape[1] or len(b) < n:
        raise ValueError(
            f"a has shape {a.shape} and b {b.shape}; a (1 or more, dim) needs b as long or longer"
        )
    (unit_a, norm_a), (unit_b, norm_b) = _normalized("a", a), _normalized("b", b)
    scores = linear(unit_a, unit_b.T) * a.dtype.type(scale)  # (n, m)
    loss, grad = cross_entropy(scores, np.arange(n))
    if symmetric:
        backward_loss, backward_grad = cross_entropy(scores[:, :n].T, np.arange(n))
        loss = (loss + backward_loss) / 2
        grad[:, :n] += backward_grad.T
        grad /= 2
    grad *= a.dtype.type(scale)
    grad_a = _normalized_backward(linear(grad, unit_b), unit_a, norm_a)
    grad_b = _normalized_backward(linear(grad.T, unit_a), unit_b, norm_b)
    return loss, grad_a, grad_b


def masked_token_loss(
    hidden: AnyArray,
    embedding_weight: AnyArray,
    targets: npt.ArrayLike,
    positions: npt.ArrayLike,
    bias: AnyArray | None = None,
) -> tuple[float, Array, Array, Array | None]:
    """Which token stood where it was masked? cross_entropy of hidden[positions] · embedding_weightᵀ + bias.

    hidden (tokens, width), embedding_weight (vocabulary, width), bias (vocabulary,) or None; positions (n,)
    says which rows of hidden, targets (n,) which tokens stood there -> (loss, grad_hidden,
    grad_embedding_weight, grad_bias), each in the shape of what it is the gradient of; grad_bias is None
    without a bias.

    "BERT" (Devlin et al. 2019). The embeddings are those of the input ("Using the Output Embedding to Improve
    Language Models", Press and Wolf 2017): add the gradient to that of the lookup. Raises TypeError for a
    dtype, ValueError for shapes that do not fit, a position outside hidden, a target outside the vocabulary.
    """
    hidden, weight = _as_matrix("hidden", hidden), _as_matrix("embedding_weight", embedding_weight)
    _require_same_dtype("hidden", hidden, "embedding_weight", weight)
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden has width {hidden.shape[1]} but embedding_weight has {weight.shape[1]}")
    labels, places = as_integers("targets", targets), as_integers("positions", positions)
    if labels.ndim != 1 or places.shape != labels.shape:
        raise ValueError(f"targets has shape {labels.shape} and positions {places.shape}; both need (n,)")
    _require_indices("targets", labels, None, "vocabulary", len(weight))
    _require_indices("positions", places, None, "tokens", len(hidden))
    rows = hidden[places]
    logits = linear(rows, weight.T, None if bias is None else as_array("bias", bias))  # (n, vocabulary)
    # A row is read before its gradient takes its place: no second (n, vocabulary) is needed.
    loss = _mean_cross_entropy(logits, labels, np.arange(len(labels)), logits)
    grad_hidden = np.zeros_like(hidden, order="C", subok=False)
    np.add.at(grad_hidden, places, linear(logits, weight))
    grad_bias = None if bias is None else logits.sum(axis=0, dtype=np.float64).astype(hidden.dtype)
    return loss, grad_hidden, linear(logits.T, rows), grad_bias


def _mean_cross_entropy(logits: Array, targets: Array, rows: Array, grad: Array) -> float:
    """The mean over the chosen rows of logits (n, classes); writes their gradient to `grad`, maybe logits."""
    if not rows.size:
        return 0.0
    losses, share = np.empty(rows.size), 1 / rows.size
    at_once = max(1, BLOCK // logits.shape[1])
    for i in range(0, rows.size, at_once):
        block = rows[i : i + at_once]
        z = logits[block].astype(np.float64, order="C")  # so that strides change no bit of the sums
        target = np.arange(len(block)), targets[block]
        with np.errstate(invalid="ignore"):  # Inf - Inf: the loss is NaN, as the formula says
            z -= z.max(axis=1, keepdims=True)
        loss = -z[target]
        np.exp(z, out=z)
        total = z.sum(axis=1)
        losses[i : i + at_once] = loss + np.log(total)
        z *= (share / total)[:, None]
        z[target] -= share
        grad[block] = z
    return float(losses.sum() * share)


def _normalized(name: str, rows: Array) -> tuple[Array, Array]:
    """Rows of length 1, and the lengths (n, 1) in float64 that they had."""
    norms = np.sqrt(np.square(rows, dtype=np.float64, order="C").sum(axis=1, keepdims=True))
    if not norms.all():
        raise ValueError(f"{name}[{np.flatnonzero(norms == 0)[0]}] is zero; it has no direction to compare")
    return (rows / norms).astype(rows.dtype), norms


def _normalized_backward(grad: Array, unit: Array, norms: Array) -> Array:
    """Of u = x / |x|: (grad - u (u · grad)) / |x|; what points along x does not change its direction."""
    along = np.multiply(grad, unit, dtype=np.float64, order="C").sum(axis=1, keepdims=True)
    out: Array = ((grad - unit * along) / norms).astype(unit.dtype)
    return out


# ---- arguments ----


def _as_floats(name: str, x: Any) -> Array:
    array = as_array(name, x)
    if array.dtype.name not in ("float32", "float64"):
        raise TypeError(f"{name} has dtype {array.dtype}; it must be float32 or float64")
    return array


def _as_matrix(name: str, x: Any) -> Array:
    array = _as_floats(name, x)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} has shape {array.shape}; it needs two dimensions, (rows, width)")
    return array


def _require_same_dtype(name: str, x: Array, other: str, y: Array) -> None:
    if x.dtype != y.dtype:
        raise TypeError(f"{name} has dtype {x.dtype} and {other} has dtype {y.dtype}; they must be the same")


def _require_indices(name: str, indices: Array, counted: Array | None, limit: str, size: int) -> None:
    """ValueError naming the first of the counted indices, by default all, that is not in 0 ... size - 1."""
    wrong = (indices < 0) | (indices >= size)
    if counted is not None:
        wrong &= counted
    if wrong.any():
        i = tuple(np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}[{', '.join(map(str, i))}]={indices[i]} must be between 0 and {limit} - 1 = {size - 1}"
        )
