# SPDX-License-Identifier: Apache-2.0
"""selfattn.attention_backward against PyTorch autograd in float64; in float32, its error beside PyTorch's."""

import itertools
import math
import warnings

import numpy as np
import pytest
from support.arrays import qkv
from support.attention_gradients import OPTIONS, QKV, backward, grad_like_out, needed, options_of

import selfattn
from selfattn.reference.dropout import dropout_factors

torch = pytest.importorskip("torch")
sdpa = torch.nn.functional.scaled_dot_product_attention
MATH = torch.nn.attention.SDPBackend.MATH

SIZES = {"batch": 2, "heads": 4, "q_len": 37, "kv_len": 53}

pytestmark = pytest.mark.usefixtures("isa")


def visible(shape, *, mask=None, causal=False, window=None, kv_lengths=None):
    """Which query sees which key, and how far away it is."""
    batch, _, q_len, kv_len = shape
    first = torch.tensor(0 if causal == "top_left" else kv_len - q_len)
    if causal == "bottom_right" and kv_lengths is not None:
        first = torch.from_numpy(kv_lengths).reshape(batch, 1, 1, 1) - q_len
    distance = torch.arange(kv_len) - (first + torch.arange(q_len)[:, None])
    seen = torch.ones(shape, dtype=torch.bool) if mask is None else torch.from_numpy(mask).expand(shape)
    if causal:
        seen = seen & (distance <= 0)
    if window is not None:
        seen = seen & (distance >= -window[0]) & (distance <= window[1])
    if kv_lengths is not None:
        seen = seen & (torch.arange(kv_len) < torch.from_numpy(kv_lengths).reshape(batch, 1, 1, 1))
    return seen, distance.abs()


def by_formula(
    query, key, value, *, bias=None, sinks=None, alibi_slopes=None, scale=None, softcap=None, dropout=0.0,
    seed=None, **masks,
):  # fmt: skip
    """Attention spelled out in operations that PyTorch differentiates."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    seen, distance = visible(scores.shape, **masks)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * distance
    if bias is not None:
        seen = seen & (bias != -torch.inf)
        scores = scores + bias.masked_fill(bias == -torch.inf, 0)
    some = seen.any(dim=-1, keepdim=True)  # softmax of no key has no gradient in PyTorch
    scores = scores.masked_fill(~seen & some, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]].where(seen, 0)
    if dropout:
        factors = dropout_factors(tuple(weights.shape), dropout, seed, np.float64)
        weights = weights * torch.from_numpy(factors).to(weights.dtype)
    return weights @ value


def autograd(forward, dtype, grad_out, query, key, value, **options):
    """The gradients that there are with these options, by name."""
    names = needed(options)
    given = {"query": query, "key": key, "value": value} | {name: options[name] for name in names[3:]}
    leaves = {
        name: torch.from_numpy(np.ascontiguousarray(x)).to(dtype).requires_grad_()
        for name, x in given.items()
    }
    others = {name: option for name, option in options.items() if name not in leaves}
    with torch.nn.attention.sdpa_kernel(MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = forward(**leaves, **others)
    grads = torch.autograd.grad(out, list(leaves.values()), torch.from_numpy(grad_out).to(dtype))
    return {name: grad.numpy() for name, grad in zip(names, grads, strict=True)}


def problem(rng, *, dtype=np.float32, **sizes):
    arrays = [x.astype(dtype) for x in qkv(rng, **({"kv_heads": 2, "dim": 20} | SIZES | sizes))]
    return grad_like_out(rng, *arrays), *arrays


# ---- float64: the gradients themselves ----


@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(rng, name, causal):
    options = options_of(rng, **SIZES)[name] | {"causal": causal}
    arrays = problem(rng, dtype=np.float64, value_dim=24)
    expected = autograd(by_formula, torch.float64, *arrays, **options)
    for of, grad in backward(*arrays, **options).items():
        np.testing.assert_allclose(grad, expected[of], rtol=0, atol=1e-12, err_msg=of)


@pytest.mark.parametrize("chosen", [*itertools.product([False, True], repeat=4)], ids=str)
def test_options_combined(rng, chosen):
    names = ("mask", "softcap", "alibi", "sinks")
    options = {"causal": "bottom_right", "window": (20, 0)}
    for name in itertools.compress(names, chosen):
        options |= options_of(rng, **SIZES)[name]
    arrays = problem(rng, dtype=np.float64, value_dim=3)
    expected = autograd(by_formula, torch.float64, *arrays, **options)
    for of, grad in backward(*arrays, **options).items():
        np.testing.assert_allclose(grad, expected[of], rtol=0, atol=1e-12, err_msg=of)


@pytest.mark.parametrize("shape", [(37, 53), (4, 1, 53), (2, 1, 37, 1), (1, 4, 1, 1), (53,), ()], ids=str)
def test_a_broadcast_bias(rng, shape):
    options = {"bias": rng.standard_normal(shape), "sinks": np.linspace(-1, 1, 4)}
    arrays = problem(rng, dtype=np.float64)
    expected = autograd(by_formula, torch.float64, *arrays, **options)
    for of, grad in backward(*arrays, **options).items():
        np.testing.assert_allclose(grad, expected[of], rtol=0, atol=1e-11, err_msg=of)


def test_the_formula_is_pytorchs(rng):
    arrays = problem(rng, dtype=np.float64, kv_heads=4)
    ours = autograd(by_formula, torch.float64, *arrays, causal="top_left")
    theirs = autograd(lambda **x: sdpa(**x, is_causal=True), torch.float64, *arrays)
    for name in QKV:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-13)


# ---- float32: the error beside PyTorch's ----


def relative_error(results, truths):
    """Root mean square over all of them, each in units of its own truth's."""
    ratios = [((a - b) ** 2).mean() / (b**2).mean() for a, b in zip(results, truths, strict=True)]
    return np.sqrt(np.mean(ratios))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_error_over_all_lengths(rng, dim, causal):
    """Of a handful of numbers the error is luck: all lengths together, each gradient by itself."""
    exact, theirs, ours = ({name: [] for name in QKV} for _ in range(3))
    for length in (7, 33, 64, 130, 300):
        sizes = {"batch": max(1, 96 // length), "heads": 3, "kv_heads": 3, "dim": dim}
        arrays = problem(rng, q_len=length, kv_len=length, **sizes)

        def forward(**x):
            return sdpa(**x, is_causal=causal)

        exact_here = autograd(forward, torch.float64, *arrays)
        theirs_here = autograd(forward, torch.float32, *arrays)
        ours_here = backward(*arrays, causal=causal)
        for name in QKV:
            exact[name].append(exact_here[name])
            theirs[name].append(theirs_here[name])
            ours[name].append(ours_here[name])
    for name in QKV:
        assert relative_error(ours[name], exact[name]) <= 2 * relative_error(theirs[name], exact[name]), name


@pytest.mark.parametrize("name", OPTIONS)
def test_error_with_every_option(rng, name):
    """Eight problems together; those of a number for each head and of a bias too."""
    exact, theirs, ours = {}, {}, {}
    for _ in range(8):
        options = options_of(rng, **SIZES, dtype=np.float32)[name]
        arrays = problem(rng)
        for results, these in (
            (exact, autograd(by_formula, torch.float64, *arrays, **options)),
            (theirs, autograd(by_formula, torch.float32, *arrays, **options)),
            (ours, backward(*arrays, **options)),
        ):
            for of, grad in these.items():
                results.setdefault(of, []).append(grad)
    times = (
        2.5 if selfattn.active_isa() == "baseline" else 2
    )  # there every product rounds, and so does every sum
    for of in exact:
        assert relative_error(ours[of], exact[of]) <= times * relative_error(theirs[of], exact[of]), of


@pytest.mark.parametrize("size", [1, 4, 16])
def test_error_with_large_logits(rng, size):
    """One larger problem, with logits up to about 84."""
    grad_out, query, key, value = problem(rng, heads=8, kv_heads=8, q_len=256, kv_len=256, dim=64)
    arrays = grad_out, query * np.float32(size), key, value
    exact = autograd(sdpa, torch.float64, *arrays)
    theirs = autograd(sdpa, torch.float32, *arrays)
    for name, grad in backward(*arrays).items():
        error, their_error = (relative_error([x], [exact[name]]) for x in (grad, theirs[name]))
        assert error <= 2 * their_error, f"{name}: {error:.3g}, PyTorch's {their_error:.3g}"


# ---- as a function of PyTorch's ----


class Attention(torch.autograd.Function):
    """Both passes of the operator as one operation that PyTorch differentiates through."""

    @staticmethod
    def forward(ctx, query, key, value, options):
        arrays = [x.detach() for x in (query, key, value)]
        out, lse = (torch.from_numpy(x) for x in selfattn.attention(*arrays, **options, return_lse=True))
        ctx.save_for_backward(*arrays, out, lse)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx, grad_out):
        saved = [x.detach() for x in ctx.saved_tensors]
        grads = selfattn.attention_backward(grad_out, *saved, **ctx.options)
        return *(torch.from_numpy(grad) for grad in grads), None


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(rng, name):
    options = options_of(rng)[name]
    arrays = qkv(rng, heads=4, kv_heads=2, q_len=5, kv_len=7, dim=3, value_dim=2)
    tensors = [torch.from_numpy(x.astype(np.float64)).requires_grad_() for x in arrays]
    assert torch.autograd.gradcheck(lambda *x: Attention.apply(*x, options), tensors)


def test_a_step_of_training(rng):
    """A loss through two attentions in a row, tensors as models have them, and an optimiser's step."""
    x = (
        torch.from_numpy(rng.standard_normal((2, 9, 4, 8)).astype(np.float32))
        .transpose(1, 2)
        .requires_grad_()
    )

    def loss(attention):
        return attention(attention(x, x, x), x, x).square().sum()

    (expected,) = torch.autograd.grad(loss(sdpa), x)
    (grad,) = torch.autograd.grad(loss(lambda *qkv: Attention.apply(*qkv, {})), x)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)
