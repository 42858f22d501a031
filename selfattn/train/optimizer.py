# SPDX-License-Identifier: Apache-2.0
"""AdamW, and gradients kept to a length: elementwise arithmetic, and sums in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from selfattn._checks import as_number
from selfattn.train.trees import (
    AnyTree,
    Array,
    Tree,
    flatten_float32,
    require_finite,
    require_shapes,
    shapes,
    unflatten,
)

BLOCK = 1 << 14  # numbers worked on at a time: what is read and written for them stays in the L2 cache
FLUSH_EVERY = 64  # steps
TINY = np.float32(1e-25)


class AdamW:
    """Adam with decoupled weight decay.

    m = betas[0] m + (1 - betas[0]) grad               the first moment: the mean of recent gradients
    v = betas[1] v + (1 - betas[1]) grad²              the second moment
    w = w - lr weight_decay w - lr m̂ / (√v̂ + eps)      m̂ = m / (1 - betas[0]^t), v̂ = v / (1 - betas[1]^t)

    "Decoupled Weight Decay Regularization" (Loshchilov and Hutter 2019); m̂ and v̂ correct the bias of moments
    that begin at 0, "Adam" (Kingma and Ba 2015). t counts the steps from 1, and is `steps` afterwards.

    weights  a tree of float32 arrays (nested dicts and lists), as layer.weights() gives
    no_decay the dotted names of the entries without weight decay; by default all with less than two
             dimensions, which are biases and norms: zero is not where they should shrink to. () for none
    """

    def __init__(
        self,
        weights: Tree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        no_decay: Collection[str] | None = None,
    ) -> None:
        flat = flatten_float32("weights", weights)
        if no_decay is None:
            no_decay = [name for name, array in flat.items() if array.ndim < 2]
        elif isinstance(no_decay, str):
            raise TypeError(f"no_decay={no_decay!r} must be a collection of names: [{no_decay!r}]")
        elif unknown := [name for name in no_decay if name not in flat]:
            raise ValueError(f"no_decay names {unknown[0]!r}, which is not an entry of the weights")
        self.lr = _as_rate("lr", lr)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas={betas!r} must be a pair: betas=(0.9, 0.999)")
        self.betas = _as_beta("betas[0]", betas[0]), _as_beta("betas[1]", betas[1])
        self.eps = _as_rate("eps", eps)
        if not self.eps:
            raise ValueError(
                "eps=0 makes NaN of every weight whose gradients were all 0; the default is 1e-8"
            )
        self.weight_decay = _as_rate("weight_decay", weight_decay)
        self.no_decay = frozenset(no_decay)
        self.steps = 0
        self.first_moments = {name: np.zeros(array.shape, np.float32) for name, array in flat.items()}
        self.second_moments = {name: np.zeros(array.shape, np.float32) for name, array in flat.items()}

    def step(self, weights: AnyTree, grads: Tree, lr: float | None = None) -> AnyTree:
        """The new weights: a tree like `weights`, of new arrays. lr is this step's; None: the optimizer's.

        The arrays are read-only, so that layer.replace takes them without a copy. What was passed is not
        changed; the moments are, and a step that Ctrl-C interrupts leaves some of them changed. Raises
        ValueError, naming the entry, for names and shapes other than those of the weights that the optimizer
        was made for, TypeError for one that is not float32.
        """
        old, flat_grads = flatten_float32("weights", weights), flatten_float32("grads", grads)
        rate = self.lr if lr is None else _as_rate("lr", lr)
        for what, flat in (("weights", old), ("grads", flat_grads)):
            require_shapes(what, shapes(flat), shapes(self.first_moments), "the optimizer")
        new = {name: np.empty(array.shape, np.float32) for name, array in old.items()}
        for name in old:
            self._update(name, old[name], flat_grads[name], new[name], rate)
            new[name].flags.writeable = False
        self.steps += 1
        return unflatten(new, weights)

    def _update(self, name: str, old: Array, grad: Array, new: Array, lr: float) -> None:
        (beta1, beta2), t = self.betas, self.steps + 1
        # lr m̂ / (√v̂ + eps) with the corrections moved to lr and eps: two passes over the arrays less.
        root = math.sqrt(1 - beta2**t)
        eps, size = self.eps * root, lr * root / (1 - beta1**t)
        kept = 1 - lr * self.weight_decay * (name not in self.no_decay)
        moments = self.first_moments[name], self.second_moments[name]
        scratch = np.empty(min(BLOCK, old.size), np.float32)
        for w, g, m, v, result in _blocks(old, grad, *moments, new):
            s = scratch[: len(w)]
            m *= beta1
            m += np.multiply(g, 1 - beta1, out=s)
            v *= beta2
            np.multiply(g, g, out=s)
            s *= 1 - beta2
            v += s
            if t % FLUSH_EVERY == 0:
                # A moment without gradients (a rare token's) shrinks until it is subnormal, never to 0, and
                # subnormals are slow in every operation. This rounds what is far below eps to 0.
                for moment in (m, v):
                    moment += TINY
                    moment -= TINY
            np.sqrt(v, out=s)
            s += eps
            np.divide(m, s, out=s)
            s *= size
            np.multiply(w, kept, out=result)
            result -= s


def clip_gradients(grads: Tree, max_norm: float) -> float:
    """Scales all gradients, in place, by max_norm / norm where norm > max_norm; returns the norm before.

    norm is the Euclidean length of all entries as one vector: "On the difficulty of training recurrent neural
    networks" (Pascanu, Mikolov and Bengio 2013). It is summed in float64. Raises ValueError naming the entry
    for NaN and Inf, which would be in every weight after the next step, and for an array that is read-only.
    """
    flat, limit = flatten_float32("grads", grads), _as_rate("max_norm", max_norm)
    squares = {name: _sum_of_squares(grad) for name, grad in flat.items()}
    for name, square in squares.items():
        if not math.isfinite(square):
            require_finite("grads", {name: flat[name]})
        if not flat[name].flags.writeable:
            raise ValueError(f"grads: {name} is read-only, but clipping writes to it: .copy()")
    norm = math.sqrt(math.fsum(squares.values()))
    if norm > limit:
        for grad in {id(grad): grad for grad in flat.values()}.values():  # one that stands twice, once
            np.multiply(grad, np.float32(limit / norm), out=grad)
    return norm


def _sum_of_squares(array: Array) -> float:
    wide = np.empty(min(BLOCK, array.size))
    sums = []
    for (block,) in _blocks(array):
        wide[: len(block)] = block
        np.square(wide[: len(block)], out=wide[: len(block)])
        sums.append(float(wide[: len(block)].sum()))
    return math.fsum(sums)


def _blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same BLOCK numbers of each array at a time: views, except of an array that is not contiguous."""
    rows = [np.asarray(array, order="C").reshape(-1) for array in arrays]
    for i in range(0, rows[0].size, BLOCK):
        yield tuple(row[i : i + BLOCK] for row in rows)


def _as_rate(name: str, value: float) -> float:
    number = as_number(name, value)
    if number < 0:
        raise ValueError(f"{name}={value} must not be negative")
    return number


def _as_beta(name: str, value: float) -> float:
    number = as_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}={value} must be in [0, 1)")
    return number
