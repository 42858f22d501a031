# SPDX-License-Identifier: Apache-2.0
"""What gradients of layers are held against: central differences of the specification in float64."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from selfattn.layers.base import Layer

STEP = 1e-6


def leaves(tree, prefix=""):
    """(dotted name, array) of everything in a tree of weights."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in items:
        if isinstance(value, dict | list):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def mapped(tree, function, prefix=""):
    """The tree with function(dotted name, array) in the place of each array."""
    if isinstance(tree, dict):
        return {name: mapped(value, function, f"{prefix}{name}.") for name, value in tree.items()}
    if isinstance(tree, list):
        return [mapped(value, function, f"{prefix}{i}.") for i, value in enumerate(tree)]
    return function(prefix[:-1], tree)


def specified(layer, weights):
    """The layer with float64 weights, as the specification reads it; a layer itself would round them."""
    values = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    for name, new in weights.items():
        if isinstance(values[name], Layer):
            values[name] = specified(values[name], new)
        elif isinstance(values[name], tuple):
            values[name] = [specified(*pair) for pair in zip(values[name], new, strict=True)]
        else:
            values[name] = new
    return SimpleNamespace(**values, kind=getattr(layer, "kind", None))


def assert_gradients(rng, layer, function, x, grad_y, grad_x, grads):
    """grad_x and grads are the gradients of sum(grad_y * function(x, layer)): along a random direction, in x
    and in each weight, the slope is the specification's. The small may be off by the rounding of the large.
    """
    weights = mapped(layer.weights(), lambda _, array: array.astype(np.float64))
    x, grad_y = x.astype(np.float64), np.where(np.isnan(grad_y), 0, grad_y.astype(np.float64))

    def slope(name, direction):
        def loss(step):
            moved = mapped(weights, lambda at, array: array + step * direction if at == name else array)
            moved_x = x + step * direction if name == "x" else x
            return (function(moved_x, specified(layer, moved)) * grad_y).sum()

        return (loss(STEP) - loss(-STEP)) / (2 * STEP)

    assert [(name, array.shape) for name, array in leaves(grads)] == [
        (name, array.shape) for name, array in leaves(weights)
    ]
    found = {"x": grad_x} | dict(leaves(grads))
    largest = max(np.linalg.norm(grad) for grad in found.values())
    for name, grad in found.items():
        assert grad.dtype == np.float32
        direction = rng.standard_normal(grad.shape)
        expected, actual = slope(name, direction), (grad * direction).sum()
        bound = 2e-5 * np.linalg.norm(grad) + 2e-6 * largest
        assert abs(actual - expected) <= bound, f"{name}: {actual} along a direction of slope {expected}"
