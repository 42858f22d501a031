# SPDX-License-Identifier: Apache-2.0
"""AdamW and clipping against their formulas, number by number; errors that name the entry."""

import math

import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.training_makers import toy_run, toy_weights

from selfattn.train import AdamW, clip_gradients, flatten
from selfattn.train.optimizer import BLOCK

SETTINGS = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def adamw(w, grads, rates, betas, eps, weight_decay):
    """The formulas of the paper, in Python's float64, one weight at a time."""
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        corrected = m / (1 - betas[0] ** t) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
        w = w - lr * weight_decay * w - lr * corrected
    return w


def test_every_weight_follows_the_formulas(rng):
    shapes = {"matrix": (7, 9), "vector": (5,), "scalar": ()}
    weights = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
        for _ in range(30)
    ]
    rates = [0.01 * (1 + step % 4) for step in range(30)]
    optimizer, new = AdamW(weights, **SETTINGS), weights
    for grads, lr in zip(gradients, rates, strict=True):
        new = optimizer.step(new, grads, lr)
    assert optimizer.steps == 30
    for name, array in weights.items():
        decayed = SETTINGS if array.ndim == 2 else {**SETTINGS, "weight_decay": 0.0}
        for i in np.ndindex(array.shape):
            exact = adamw(float(array[i]), [float(g[name][i]) for g in gradients], rates, **decayed)
            assert new[name][i] == pytest.approx(exact, rel=3e-6, abs=3e-6)


def test_blocks_and_layouts_change_no_bit(rng):
    """A matrix of several blocks, and its parts, each an array of its own, with strides."""
    whole = rng.standard_normal((3, BLOCK - 5), dtype=np.float32)
    grads = [rng.standard_normal(whole.shape, dtype=np.float32) for _ in range(3)]
    together, apart = AdamW(whole, **SETTINGS), AdamW(list(whole.T[::2].T), no_decay=(), **SETTINGS)
    joined, parts = whole, list(whole.T[::2].T)
    for grad in grads:
        joined, parts = together.step(joined, grad), apart.step(parts, list(grad[:, ::2]))
    assert_same_bits(np.stack(parts), joined[:, ::2])


def test_new_weights_are_new_and_read_only():
    weights = toy_weights()
    before = {name: array.copy() for name, array in flatten(weights).items()}
    grads = {name: np.ones_like(array) for name, array in before.items()}
    optimizer = AdamW(before, lr=0.1)
    new = optimizer.step(weights, grads)
    assert new["layers"][1]["bias"] is None
    for name, array in flatten(new).items():
        assert not array.flags.writeable
        assert array.base is None
        assert not np.array_equal(array, before[name])
        np.testing.assert_array_equal(flatten(weights)[name], before[name])
        np.testing.assert_array_equal(grads[name], 1)


def test_by_default_matrices_alone_decay():
    weights = toy_weights()
    zeros = {name: np.zeros_like(array) for name, array in flatten(weights).items()}

    def shrunk(no_decay):
        new = flatten(AdamW(weights, lr=0.5, weight_decay=0.5, no_decay=no_decay).step(weights, zeros))
        return {name for name, array in flatten(weights).items() if not np.array_equal(array, new[name])}

    matrices = {"embedding", "layers.0.weight", "layers.1.weight"}
    assert shrunk(None) == matrices
    assert shrunk(["embedding"]) == {"layers.0.weight", "layers.0.bias", "layers.1.weight"}
    assert shrunk(()) == matrices | {"layers.0.bias"}
    zeros_too = flatten(AdamW(weights, lr=0.5, weight_decay=0.5).step(weights, zeros))
    np.testing.assert_array_equal(zeros_too["embedding"], weights["embedding"] * np.float32(0.75))


def test_moments_without_gradients_become_zero_and_are_never_subnormal():
    weights = np.ones((2, 50), np.float32)
    optimizer, tiny = AdamW(weights, betas=(0.9, 0.9)), np.finfo(np.float32).tiny
    grad = np.geomspace(1e-12, 1, weights.size, dtype=np.float32).reshape(weights.shape)
    for _ in range(1000):
        weights = optimizer.step(weights, grad)
        for moments in (optimizer.first_moments, optimizer.second_moments):
            assert not np.any((moments[""] != 0) & (np.abs(moments[""]) < tiny))
        grad = np.zeros_like(grad)
    assert not optimizer.first_moments[""].any()
    assert not optimizer.second_moments[""].any()


def test_the_toy_learns():
    weights = toy_weights()
    losses, _ = toy_run(weights, AdamW(weights), np.random.default_rng(1))
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])


def wrong(change):
    """Zero gradients for the toy, with one thing wrong."""
    flat = {name: np.zeros_like(array) for name, array in flatten(toy_weights()).items()}
    change(flat)
    return flat


WRONG = [
    (
        lambda t: t.pop("layers.0.bias"),
        ValueError,
        r"grads lacks 1 of the optimizer's 4 entries, first layers\.0\.bias",
    ),
    (
        lambda t: t.update(x=np.zeros(1, np.float32)),
        ValueError,
        r"grads has 1 entries that the optimizer does not have, first x",
    ),
    (
        lambda t: t.update({"layers.0.bias": np.zeros(3, np.float32)}),
        ValueError,
        r"layers\.0\.bias has shape \(3,\); in the optimizer it has \(12,\)",
    ),
    (
        lambda t: t.update({"layers.0.bias": np.zeros(12)}),
        TypeError,
        r"grads: layers\.0\.bias has dtype float64",
    ),
    (lambda t: t.update({"layers.0.bias": 0.0}), TypeError, r"grads: the entry layers\.0\.bias is a float"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_gradients_are_named_and_nothing_has_changed(change, error, message):
    weights = toy_weights()
    optimizer = AdamW(weights)
    with pytest.raises(error, match=message):
        optimizer.step(weights, wrong(change))
    assert optimizer.steps == 0
    assert not any(moment.any() for moment in optimizer.first_moments.values())


def test_wrong_weights_are_named():
    weights = toy_weights()
    optimizer, grads = AdamW(weights), wrong(lambda t: None)
    weights["layers"].pop()
    with pytest.raises(
        ValueError, match=r"weights lacks 1 of the optimizer's 4 entries, first layers\.1\.weight"
    ):
        optimizer.step(weights, grads)
    with pytest.raises(TypeError, match=r"weights: a has dtype int64; it must be float32"):
        AdamW({"a": np.zeros(3, np.int64)})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"lr=-1\.0 must not be negative"),
        ({"lr": "1"}, TypeError, "lr='1' must be a number"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\]=1\.0 must be in \[0, 1\)"),
        ({"betas": (0.9,)}, TypeError, r"betas=\(0\.9,\) must be a pair"),
        ({"betas": 0.9}, TypeError, "betas=0.9 must be a pair"),
        ({"eps": 0.0}, ValueError, "eps=0 makes NaN"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay=nan must be finite"),
        ({"no_decay": ["embeding"]}, ValueError, "no_decay names 'embeding'"),
        ({"no_decay": "embedding"}, TypeError, "must be a collection of names"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        AdamW(toy_weights(), **settings)


# ---- clipping ----


def random_gradients(rng):
    shapes = {"a": (5, 7), "b": (BLOCK + 3,), "c": ()}
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def test_clipping_scales_to_the_norm(rng):
    grads = random_gradients(rng)
    before = {name: grad.copy() for name, grad in grads.items()}
    exact = math.sqrt(math.fsum(float(x) ** 2 for grad in before.values() for x in grad.flat))
    assert clip_gradients(grads, 2.0) == pytest.approx(exact, rel=1e-13)
    for name, grad in grads.items():
        assert_same_bits(grad, before[name] * np.float32(2.0 / exact))
    assert clip_gradients(grads, 1e9) == pytest.approx(2.0, rel=1e-6)


def test_an_array_that_stands_twice_is_scaled_once():
    """One array for two weights that are tied: it counts twice in the norm."""
    tied = np.full(8, 3.0, np.float32)
    assert clip_gradients({"input": tied, "output": tied}, 1.0) == pytest.approx(12.0)
    np.testing.assert_allclose(tied, 3 / 12, rtol=1e-6)


def test_what_is_short_enough_is_left_alone(rng):
    grads = random_gradients(rng)
    before = {name: grad.copy() for name, grad in grads.items()}
    clip_gradients(grads, 1e6)
    for name, grad in grads.items():
        assert_same_bits(grad, before[name])


def test_strides_and_the_order_of_entries_change_no_bit(rng):
    grads = random_gradients(rng)
    turned = {"b": grads["b"].copy(), "c": grads["c"].copy(), "a": np.asfortranarray(grads["a"])}
    assert clip_gradients(grads, 2.0) == clip_gradients(turned, 2.0)
    assert_same_bits(turned["a"], grads["a"])


def test_bad_gradients_are_named_before_any_is_scaled(rng):
    grads = random_gradients(rng)
    grads["b"][[3, 9]] = np.nan, np.inf
    before = grads["a"].copy()
    with pytest.raises(ValueError, match=rf"grads: b holds 2 NaN or Inf among its {BLOCK + 3} values"):
        clip_gradients(grads, 0.1)
    grads["b"] = np.broadcast_to(np.float32(1), 9)
    with pytest.raises(ValueError, match="grads: b is read-only"):
        clip_gradients(grads, 0.1)
    assert_same_bits(grads["a"], before)
    with pytest.raises(ValueError, match="max_norm=-1 must not be negative"):
        clip_gradients(grads, -1)
