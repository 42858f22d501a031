# SPDX-License-Identifier: Apache-2.0
"""The gradients of layers against PyTorch's autograd: float64 is the truth, float32 the yardstick."""

import itertools

import numpy as np
import pytest
from support.accuracy import assert_as_exact_as_numpy
from support.derivatives import leaves, mapped

from selfattn.layers import Encoder, EncoderLayer, FeedForward, LayerNorm, MultiHeadSelfAttention, RMSNorm
from selfattn.layers.embedding import embedding_backward, rotary_embedding_backward
from selfattn.layers.positions import rotary_embedding
from selfattn.text.pooling_backward import normalize_backward, pool_backward

torch = pytest.importorskip("torch")
F = torch.nn.functional

D_MODEL, NUM_HEADS, D_FF, LENGTH = 48, 4, 80, 11
LENGTHS = [11, 1, 6]
REAL = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
MAKES = list(itertools.product(ACTIVATIONS, [False, True], ["layer", "rms"], [False, True], [4, 2]))


def random_weights(rng, layer):
    """The layer with every weight random, biases and norms too."""

    def random(name, array):
        if array.ndim == 2:
            return rng.standard_normal(array.shape) / np.sqrt(len(array))
        return rng.standard_normal(array.shape) * 0.3 + (name.endswith("norm.weight"))

    return layer.replace(mapped(layer.weights(), random))


def make_layer(rng, **how):
    return random_weights(rng, EncoderLayer.initialize(D_MODEL, NUM_HEADS, D_FF, rng=rng, **how))


# ---- the layers, written with torch's functions ----


def torch_norm(layer, w, x):
    if layer.kind == "rms":
        return F.rms_norm(x, (D_MODEL,), w["weight"], layer.eps)
    return F.layer_norm(x, (D_MODEL,), w["weight"], w.get("bias"), layer.eps)


def torch_linear(w, role, x):
    bias = w.get(f"{role}_bias")
    y = x @ w[f"{role}_weight"]
    return y if bias is None else y + bias


def torch_attention(layer, w, x, mask):
    kv_heads = layer.num_kv_heads
    heads = zip(("query", "key", "value"), (layer.num_heads, kv_heads, kv_heads), strict=True)
    query, key, value = (
        torch_linear(w, role, x).unflatten(-1, (count, -1)).transpose(1, 2) for role, count in heads
    )
    how = {"attn_mask": mask, "is_causal": layer.causal, "scale": layer.scale, "enable_gqa": True}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        context = F.scaled_dot_product_attention(query, key, value, **how)
    joined = context.transpose(1, 2).flatten(2)
    return joined if layer.output_weight is None else torch_linear(w, "output", joined)


def torch_feed_forward(layer, w, x):
    act = ACTIVATIONS[layer.activation]
    up = torch_linear(w, "up", x)
    hidden = act(up) if layer.gate_weight is None else act(torch_linear(w, "gate", x)) * up
    return torch_linear(w, "down", hidden)


def torch_encoder(stack, weights, x, mask):
    for layer, w in zip(stack.layers, weights["layers"], strict=True):

        def norm1(x, layer=layer, w=w):
            return torch_norm(layer.attention_norm, w["attention_norm"], x)

        def norm2(x, layer=layer, w=w):
            return torch_norm(layer.feed_forward_norm, w["feed_forward_norm"], x)

        if layer.norm_first:
            x = x + torch_attention(layer.attention, w["attention"], norm1(x), mask)
            x = x + torch_feed_forward(layer.feed_forward, w["feed_forward"], norm2(x))
        else:
            x = norm1(x + torch_attention(layer.attention, w["attention"], x, mask))
            x = norm2(x + torch_feed_forward(layer.feed_forward, w["feed_forward"], x))
    return x if stack.final_norm is None else torch_norm(stack.final_norm, weights["final_norm"], x)


def torch_gradients(stack, x, grad_y, lengths, dtype):
    """(dotted name -> gradient) of sum(grad_y * y), x among them."""
    weights = mapped(
        stack.weights(), lambda _, array: torch.from_numpy(array.copy()).to(dtype).requires_grad_()
    )
    words = torch.from_numpy(x).to(dtype).requires_grad_()
    mask = None if lengths is None else torch.from_numpy(REAL)[:, None, None, :]
    y = torch_encoder(stack, weights, words, mask)
    (y * torch.from_numpy(grad_y).to(dtype)).sum().backward()
    return {"x": words.grad.numpy()} | {name: leaf.grad.numpy() for name, leaf in leaves(weights)}


def joined(gradients, sizes):
    """All of them side by side, each in units of its size."""
    return np.concatenate([gradients[name].ravel() / size for name, size in sizes.items()])


def check(rng, stack, lengths, together=False):
    """Each gradient by itself; or all together, where many share the luck of what was rounded first."""
    x = rng.standard_normal((3, LENGTH, D_MODEL)).astype(np.float32)
    y, saved = stack.forward(x, lengths=lengths)
    grad_y = rng.standard_normal(y.shape).astype(np.float32)
    if lengths is not None:
        grad_y[~REAL] = 0  # torch computes the padding too
    grad_x, grads = stack.backward(saved, grad_y)
    ours = {"x": grad_x} | dict(leaves(grads))
    naive = torch_gradients(stack, x, grad_y, lengths, torch.float32)
    exact = torch_gradients(stack, x, grad_y, lengths, torch.float64)
    assert ours.keys() == exact.keys()
    for name, grad in ours.items():
        if name.endswith("key_bias"):  # shifts a row of scores as a whole: its gradient is rounding alone
            size = np.linalg.norm(ours[name.replace("key", "query")])
            assert np.linalg.norm(grad) <= 2 * np.linalg.norm(naive[name]) + 1e-6 * size
        elif not together:
            assert_as_exact_as_numpy(grad, naive[name], exact[name])
    if together:
        sizes = {name: grad.std() for name, grad in exact.items() if not name.endswith("key_bias")}
        assert_as_exact_as_numpy(
            joined(ours, sizes).astype(np.float32),
            joined(naive, sizes).astype(np.float32),
            joined(exact, sizes),
        )


@pytest.mark.parametrize(("activation", "norm_first", "norm", "gated", "num_kv_heads"), MAKES)
def test_every_make_of_layer(rng, activation, norm_first, norm, gated, num_kv_heads):
    how = {"activation": activation, "norm_first": norm_first, "norm": norm, "gated": gated}
    check(rng, Encoder([make_layer(rng, num_kv_heads=num_kv_heads, **how)]), LENGTHS)


@pytest.mark.parametrize("how", [{"causal": True}, {"bias": False}, {"bias": False, "gated": True}])
def test_settings(rng, how):
    check(rng, Encoder([make_layer(rng, **how)]), None)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_in_depth(rng, norm_first):
    layers = [make_layer(rng, norm_first=norm_first) for _ in range(3)]
    final = RMSNorm(1 + rng.standard_normal(D_MODEL) / 5) if norm_first else None
    check(rng, Encoder(layers, final), LENGTHS, together=True)


# ---- torch's own encoder layer ----


def from_torch(module, activation):
    """The layer, in our structure, of what `array` takes out of each parameter: its value or its gradient."""

    def tree(array):
        def cut(parameter, index):
            return np.split(array(parameter), 3)[index].T

        attention = {}
        for index, role in enumerate(("query", "key", "value")):
            attention[f"{role}_weight"] = cut(module.self_attn.in_proj_weight, index)
            attention[f"{role}_bias"] = cut(module.self_attn.in_proj_bias, index)
        out = module.self_attn.out_proj
        attention |= {"output_weight": array(out.weight).T, "output_bias": array(out.bias)}
        up, down = module.linear1, module.linear2
        feed_forward = {"up_weight": array(up.weight).T, "down_weight": array(down.weight).T}
        feed_forward |= {"up_bias": array(up.bias), "down_bias": array(down.bias)}
        norms = {
            name: {"weight": array(norm.weight), "bias": array(norm.bias)}
            for name, norm in (("attention_norm", module.norm1), ("feed_forward_norm", module.norm2))
        }
        return {"attention": attention, "feed_forward": feed_forward} | norms

    def layer(w):
        return EncoderLayer(
            MultiHeadSelfAttention(**w["attention"], num_heads=NUM_HEADS),
            LayerNorm(**w["attention_norm"]),
            FeedForward(**w["feed_forward"], activation=activation),
            LayerNorm(**w["feed_forward_norm"]),
            module.norm_first,
        )

    return layer, tree


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_of_torch(rng, activation, norm_first):
    torch.manual_seed(0)
    module = torch.nn.TransformerEncoderLayer(
        D_MODEL, NUM_HEADS, D_FF, 0.0, ACTIVATIONS[activation], norm_first=norm_first, batch_first=True
    )
    layer, tree = from_torch(module, activation)
    one = layer(tree(lambda parameter: parameter.detach().numpy()))
    x = rng.standard_normal((3, LENGTH, D_MODEL)).astype(np.float32)
    y, saved = one.forward(x, lengths=LENGTHS)
    grad_y = np.where(REAL[..., None], rng.standard_normal(y.shape), 0).astype(np.float32)
    grad_x, grads = one.backward(saved, grad_y)
    words = torch.from_numpy(x).double().requires_grad_()
    theirs = module.double()(words, src_key_padding_mask=torch.from_numpy(~REAL))
    (theirs * torch.from_numpy(grad_y)).sum().backward()
    expected = dict(leaves(tree(lambda parameter: parameter.grad.numpy()))) | {"x": words.grad.numpy()}
    found = dict(leaves(grads)) | {"x": grad_x}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


# ---- before and after the layers ----


def torch_gradient(x, function, grad_y):
    wide = torch.from_numpy(x).double().requires_grad_()
    (function(wide) * torch.from_numpy(grad_y).double()).sum().backward()
    return wide.grad.numpy()


def test_embedding(rng):
    ids, table = rng.integers(0, 9, (3, 40)), rng.standard_normal((12, 8)).astype(np.float32)
    grad_y = rng.standard_normal((3, 40, 8)).astype(np.float32)
    expected = torch_gradient(table, lambda t: F.embedding(torch.from_numpy(ids), t), grad_y)
    np.testing.assert_allclose(embedding_backward(grad_y, ids, 12), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(rng, interleaved):
    grad_y = rng.standard_normal((2, 5, 8)).astype(np.float32)
    how = {"rotary_dim": 6, "interleaved": interleaved, "base": 100.0}
    angles = rotary_embedding(np.broadcast_to(np.eye(8), (5, 8, 8)).swapaxes(0, 1), np.arange(5), **how)
    turn = torch.from_numpy(angles.transpose(1, 0, 2).copy())  # (seq_len, dim, dim): x_p @ turn_p
    expected = torch_gradient(np.zeros_like(grad_y), lambda x: torch.einsum("bpi,pij->bpj", x, turn), grad_y)
    ours = rotary_embedding_backward(grad_y, np.arange(5), **how)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


POOLS = {
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(dim=0).values,
    "mean": lambda rows: rows.mean(dim=0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(dim=0) / len(rows) ** 0.5,
    "lasttoken": lambda rows: rows[-1],
}


def test_pooling_and_normalizing(rng):
    tokens, bounds = rng.standard_normal((11, 6)).astype(np.float32), np.array([0, 4, 4, 5, 11])
    grad_y = rng.standard_normal((4, len(POOLS) * 6)).astype(np.float32)

    def pooled(t):
        rows = [t[first:last] for first, last in itertools.pairwise(bounds)]
        empty = torch.zeros(len(POOLS) * 6, dtype=torch.float64)
        return torch.stack([torch.cat([f(r) for f in POOLS.values()]) if len(r) else empty for r in rows])

    ours = pool_backward(grad_y, tokens, bounds, tuple(POOLS))
    np.testing.assert_allclose(ours, torch_gradient(tokens, pooled, grad_y), rtol=1e-6, atol=1e-6)
    grad_y = rng.standard_normal(tokens.shape).astype(np.float32)
    expected = torch_gradient(tokens, lambda t: F.normalize(t, dim=1), grad_y)
    np.testing.assert_allclose(normalize_backward(grad_y, tokens), expected, rtol=1e-6, atol=1e-6)
