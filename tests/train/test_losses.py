# SPDX-License-Identifier: Apache-2.0
"""The losses against their formulas, their gradients against central differences, and what they refuse."""

import math

import numpy as np
import pytest
from support.accuracy import assert_same_bits

import selfattn
from selfattn.train import contrastive_loss, cross_entropy, masked_token_loss
from selfattn.train.losses import BLOCK


def assert_gradients(loss, arrays, gradients, step=1e-5):
    """Every element of every gradient against (loss(x + step) - loss(x - step)) / (2 step), in float64."""
    for array, gradient in zip(arrays, gradients, strict=True):
        assert (gradient.shape, gradient.dtype) == (array.shape, np.float64)
        for i in np.ndindex(array.shape):
            center, values = array[i], []
            for array[i] in (center + step, center - step):
                values.append(loss(*arrays)[0])
            array[i] = center
            assert gradient[i] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)


# ---- cross-entropy ----


def formula(logits, targets):
    rows = [[float(x) for x in row] for row in logits]
    losses = [math.log(math.fsum(map(math.exp, row))) - row[t] for row, t in zip(rows, targets, strict=True)]
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_its_formula(rng, dtype):
    logits, targets = (5 * rng.standard_normal((9, 7))).astype(dtype), rng.integers(0, 7, 9)
    loss, grad = cross_entropy(logits, targets)
    assert loss == pytest.approx(formula(logits, targets), rel=1e-14)
    assert (grad.shape, grad.dtype) == (logits.shape, dtype)
    assert_gradients(
        lambda x: cross_entropy(x, targets),
        [logits.astype(np.float64)],
        [cross_entropy(logits.astype(np.float64), targets)[1]],
    )


def test_ignored_rows_count_for_nothing_whatever_they_hold(rng):
    logits, targets = rng.standard_normal((4, 5, 6), dtype=np.float32), rng.integers(0, 6, (4, 5))
    targets[1:3] = -7
    logits[1] = np.nan
    loss, grad = cross_entropy(logits, targets, ignore=-7)
    kept = targets != -7
    alone, grad_alone = cross_entropy(logits[kept], targets[kept])
    assert loss == alone
    assert_same_bits(grad[kept], grad_alone)
    assert not grad[~kept].any()
    assert cross_entropy(logits, np.full((4, 5), -100))[0] == 0.0


def test_large_logits_and_sure_ones():
    logits = np.array([[1e30, 1e30], [3e38, -3e38], [0, -np.inf]], np.float32)
    loss, grad = cross_entropy(logits, [0, 0, 0])
    assert loss == pytest.approx(math.log(2) / 3)
    np.testing.assert_allclose(grad, [[-1 / 6, 1 / 6], [0, 0], [0, 0]], rtol=1e-6)
    assert cross_entropy(logits[2:], [1])[0] == math.inf
    tiny, _ = cross_entropy(np.array([[30.0, 0.0]], np.float32), [0])
    assert tiny == pytest.approx(math.log1p(math.exp(-30)), rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_seen_in_the_loss(rng, bad):
    logits = rng.standard_normal((3, 4), dtype=np.float32)
    logits[1, 2] = bad
    loss, grad = cross_entropy(logits, [0, 1, 2])
    assert math.isnan(loss)
    np.testing.assert_array_equal(np.isnan(grad).all(axis=1), [False, True, False])


def test_blocks_and_layouts_change_no_bit(rng):
    classes = BLOCK // 3
    logits, targets = rng.standard_normal((8, classes), dtype=np.float32), rng.integers(0, classes, 8)
    loss, grad = cross_entropy(logits, targets)
    again, grad_again = cross_entropy(np.asfortranarray(logits), targets)
    assert loss == again
    assert_same_bits(grad_again, grad)
    for i in range(8):
        _, row = cross_entropy(logits[i : i + 1], targets[i : i + 1])
        np.testing.assert_allclose(grad[i], row[0] / 8, rtol=3e-7)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (np.zeros((2, 3)), [0, 3], ValueError, r"targets\[1\]=3 must be between 0 and classes - 1 = 2"),
        (np.zeros((1, 2, 3)), [[0, -1]], ValueError, r"targets\[0, 1\]=-1"),
        (
            np.zeros((2, 3)),
            [0],
            ValueError,
            r"targets has shape \(1,\); one for each row of logits is \(2,\)",
        ),
        (np.zeros((2, 0)), [0, 0], ValueError, r"logits has shape \(2, 0\)"),
        (np.zeros((2, 3)), [0.0, 1.0], TypeError, "targets has dtype float64; it must be integers"),
        (np.zeros((2, 3), np.float16), [0, 0], TypeError, "logits has dtype float16"),
        ([[0.0, 1.0]], [0], TypeError, "logits is a list"),
    ],
)
def test_cross_entropy_refuses(logits, targets, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(logits, targets)


# ---- contrastive ----


def cosines(a, b):
    return a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("extra", [0, 3])
def test_contrastive_loss_and_its_gradients(rng, symmetric, extra):
    a, b = rng.standard_normal((4, 6)), rng.standard_normal((4 + extra, 6))
    loss, *gradients = contrastive_loss(a, b, 7.0, symmetric=symmetric)
    scores = 7.0 * cosines(a, b)
    exact = formula(scores, range(4))
    if symmetric:
        exact = (exact + formula(scores[:, :4].T, range(4))) / 2
    assert loss == pytest.approx(exact, rel=1e-12)
    assert_gradients(lambda x, y: contrastive_loss(x, y, 7.0, symmetric=symmetric), [a, b], gradients)


def test_contrastive_loss_in_float32(rng):
    a, b = rng.standard_normal((2, 30, 20), dtype=np.float32)
    loss, grad_a, grad_b = contrastive_loss(a, b)
    exact, exact_a, exact_b = contrastive_loss(a.astype(np.float64), b.astype(np.float64), 20.0)
    assert loss == pytest.approx(exact, rel=1e-6)
    for grad, truth in ((grad_a, exact_a), (grad_b, exact_b)):
        assert grad.dtype == np.float32
        np.testing.assert_allclose(grad, truth, rtol=0, atol=3e-6 * np.abs(truth).max())


def test_strides_change_no_bit(rng):
    a, b = rng.standard_normal((2, 33, 70), dtype=np.float32)
    expected = contrastive_loss(a, b, symmetric=True)
    actual = contrastive_loss(np.asfortranarray(a), np.repeat(b, 2, axis=1)[:, ::2], symmetric=True)
    assert actual[0] == expected[0]
    for i in (1, 2):
        assert_same_bits(actual[i], expected[i])


def test_only_the_direction_counts(rng):
    a, b = rng.standard_normal((2, 5, 8))
    loss, grad_a, _ = contrastive_loss(a, b)
    np.testing.assert_allclose((grad_a * a).sum(axis=1), 0, atol=1e-12)
    assert contrastive_loss(3 * a, b / 2)[0] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), ValueError, r"a has shape \(3, 4\) and b \(2, 4\)"),
        (np.ones((3, 4)), np.ones((3, 5)), ValueError, r"a has shape \(3, 4\) and b \(3, 5\)"),
        (np.ones((0, 4)), np.ones((0, 4)), ValueError, r"a has shape \(0, 4\)"),
        (np.ones(4), np.ones((3, 4)), ValueError, r"a has shape \(4,\)"),
        (
            np.ones((3, 4)),
            np.ones((3, 4), np.float32),
            TypeError,
            "a has dtype float64 and b has dtype float32",
        ),
        (np.ones((3, 4)), np.eye(4)[:3] * [[1], [0], [1]], ValueError, r"b\[1\] is zero"),
    ],
)
def test_contrastive_loss_refuses(a, b, error, message):
    with pytest.raises(error, match=message):
        contrastive_loss(a, b)


# ---- masked tokens ----


@pytest.mark.parametrize("with_bias", [False, True])
def test_masked_token_loss_and_its_gradients(rng, with_bias):
    arrays = [rng.standard_normal((6, 4)), rng.standard_normal((9, 4))]
    arrays += [rng.standard_normal(9)] if with_bias else []
    targets, positions = [3, 8, 0, 3], [5, 1, 0, 1]

    def loss(hidden, weight, bias=None):
        return masked_token_loss(hidden, weight, targets, positions, bias)

    value, *gradients = loss(*arrays)
    logits = arrays[0][positions] @ arrays[1].T + (arrays[2] if with_bias else 0)
    assert value == pytest.approx(formula(logits, targets), rel=1e-12)
    if not with_bias:
        assert gradients.pop() is None
    assert_gradients(loss, arrays, gradients)
    assert not gradients[0][[2, 3, 4]].any()


def test_nothing_masked_is_no_loss(rng):
    hidden, weight, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((3, 4), (5, 4), 5))
    loss, *gradients = masked_token_loss(hidden, weight, [], [], bias)
    assert loss == 0.0
    assert [grad.shape for grad in gradients] == [(3, 4), (5, 4), (5,)]
    assert not any(grad.any() for grad in gradients)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": [0, 5]}, ValueError, r"targets\[1\]=5 must be between 0 and vocabulary - 1 = 4"),
        ({"positions": [-1, 0]}, ValueError, r"positions\[0\]=-1 must be between 0 and tokens - 1 = 2"),
        ({"positions": [0]}, ValueError, r"targets has shape \(2,\) and positions \(1,\)"),
        ({"embedding_weight": np.zeros((5, 3))}, ValueError, "hidden has width 4 but embedding_weight has 3"),
        ({"embedding_weight": np.zeros((5, 4), np.float32)}, TypeError, "embedding_weight has dtype float32"),
        ({"bias": np.zeros(4)}, ValueError, r"bias has shape \(4,\)"),
    ],
)
def test_masked_token_loss_refuses(change, error, message):
    good = {
        "hidden": np.zeros((3, 4)),
        "embedding_weight": np.zeros((5, 4)),
        "targets": [0, 1],
        "positions": [0, 2],
    }
    with pytest.raises(error, match=message):
        masked_token_loss(**{**good, **change})


def test_threads_change_no_bit(rng):
    """Sizes at which products are cut among threads."""
    a, b, weight = (rng.standard_normal((n, 64), dtype=np.float32) for n in (200, 200, 3000))
    targets, positions = rng.integers(0, 3000, 150), rng.permutation(200)[:150]
    results = []
    for count in (1, 2, 5):
        with selfattn.threads(count):
            results.append(
                (*contrastive_loss(a, b)[1:], *masked_token_loss(a, weight, targets, positions)[1:3])
            )
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_same_bits(actual, expected)
