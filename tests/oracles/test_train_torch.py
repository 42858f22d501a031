# SPDX-License-Identifier: Apache-2.0
"""selfattn.train against PyTorch's optimizer, clipping, losses and schedule."""

import numpy as np
import pytest
from support.accuracy import assert_as_exact_as_numpy

from selfattn.train import (
    AdamW,
    clip_gradients,
    contrastive_loss,
    cross_entropy,
    masked_token_loss,
    warmup_cosine,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional
SHAPES = {"matrix": (30, 17), "bias": (17,), "one": ()}


def random_trees(rng, count):
    return [
        {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def torch_steps(weights, gradients, rates, dtype, **settings):
    """The weights after torch.optim.AdamW has taken the steps in `dtype`; matrices alone decay."""
    decay = settings.pop("weight_decay")
    parameters = {
        name: torch.tensor(array, dtype=dtype, requires_grad=True) for name, array in weights.items()
    }
    groups = [{"params": [p], "weight_decay": decay if p.ndim == 2 else 0.0} for p in parameters.values()]
    optimizer = torch.optim.AdamW(groups, **settings)
    for grads, lr in zip(gradients, rates, strict=True):
        for group, grad in zip(optimizer.param_groups, grads.values(), strict=True):
            group["lr"] = lr
            group["params"][0].grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.5},
        {"betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    ],
)
def test_adamw(rng, settings):
    (weights, *gradients), rates = random_trees(rng, 51), [0.02 * (1 + i % 3) for i in range(50)]
    optimizer, ours = AdamW(weights, **settings), weights
    for grads, lr in zip(gradients, rates, strict=True):
        ours = optimizer.step(ours, grads, lr)
    exact = torch_steps(weights, gradients, rates, torch.float64, **settings)
    theirs = torch_steps(weights, gradients, rates, torch.float32, **settings)
    joined = [np.concatenate([tree[name].ravel() for name in SHAPES]) for tree in (ours, theirs, exact)]
    assert_as_exact_as_numpy(*joined)


@pytest.mark.parametrize("max_norm", [0.5, 1e4])
def test_clip_gradients(rng, max_norm):
    (grads,) = random_trees(rng, 1)
    parameters = [torch.zeros(grad.shape, dtype=torch.float64, requires_grad=True) for grad in grads.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = torch.tensor(grad, dtype=torch.float64)
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    assert clip_gradients(grads, max_norm) == pytest.approx(expected, rel=1e-12)
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        # PyTorch divides by norm + 1e-6
        np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=3e-7)


def float32_and_exact(loss, arrays):
    """PyTorch's (value, gradients) in float32 and in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        tensors = [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]
        value = loss(*tensors)
        value.backward()
        results.append((value.item(), [tensor.grad.numpy() for tensor in tensors]))
    return results


def check(loss, ours, arrays):
    (_, theirs), (exact_value, exact) = float32_and_exact(loss, arrays)
    value, *gradients = ours
    assert value == pytest.approx(exact_value, rel=3e-6)
    for gradient, naive, truth in zip(gradients, theirs, exact, strict=True):
        assert_as_exact_as_numpy(gradient, naive, truth)


@pytest.mark.parametrize("ignore", [-100, 3])
def test_cross_entropy(rng, ignore):
    logits, targets = 4 * rng.standard_normal((50, 70), dtype=np.float32), rng.integers(0, 70, 50)
    targets[::3] = ignore
    criterion = torch.nn.CrossEntropyLoss(ignore_index=ignore)
    check(lambda x: criterion(x, torch.tensor(targets)), cross_entropy(logits, targets, ignore), [logits])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("extra", [0, 9])
def test_contrastive_loss(rng, symmetric, extra):
    a, b = (rng.standard_normal((n, 24), dtype=np.float32) for n in (20, 20 + extra))

    def loss(a, b):
        scores, partners = 20 * F.cosine_similarity(a[:, None], b[None], dim=-1), torch.arange(len(a))
        forward = F.cross_entropy(scores, partners)
        return (forward + F.cross_entropy(scores[:, : len(a)].T, partners)) / 2 if symmetric else forward

    check(loss, contrastive_loss(a, b, 20.0, symmetric=symmetric), [a, b])


def test_masked_token_loss(rng):
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in ((40, 32), (300, 32), (300,))]
    targets, positions = rng.integers(0, 300, 11), rng.permutation(40)[:11]

    def loss(hidden, weight, bias):
        return F.cross_entropy(F.linear(hidden[positions], weight, bias), torch.tensor(targets))

    hidden, weight, bias = arrays
    check(loss, masked_token_loss(hidden, weight, targets, positions, bias), arrays)


def test_warmup_cosine():
    """LinearLR from 1/warmup, which holds its peak at step warmup - 1, and then CosineAnnealingLR."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 8, total_iters=7),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=32, eta_min=0.02),
    ]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[8])
    for step in range(41):
        expected = optimizer.param_groups[0]["lr"]
        assert warmup_cosine(step, 8, 40, peak=0.3, floor=0.02) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule.step()
