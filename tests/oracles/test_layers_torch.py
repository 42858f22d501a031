# SPDX-License-Identifier: Apache-2.0
"""The layers against those of PyTorch: encoder layers and stacks, multi-head attention, norms, functions."""

import itertools

import numpy as np
import pytest

from selfattn import reference
from selfattn.layers import Encoder, EncoderLayer, FeedForward, LayerNorm, MultiHeadSelfAttention, RMSNorm

torch = pytest.importorskip("torch")

D_MODEL, NUM_HEADS, D_FF = 48, 4, 80
LENGTHS = [11, 1, 6]


def array(parameter):
    return parameter.detach().numpy()


def randomised(module):
    """Every parameter random, biases and norms too: torch starts them at 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return module.eval()


def from_torch_attention(module, causal=False):
    query, key, value = (part.T for part in np.split(array(module.in_proj_weight), 3))
    biases = (None,) * 3 if module.in_proj_bias is None else np.split(array(module.in_proj_bias), 3)
    output_bias = None if module.out_proj.bias is None else array(module.out_proj.bias)
    output = array(module.out_proj.weight).T
    heads = {"num_heads": module.num_heads, "causal": causal}
    return MultiHeadSelfAttention(query, key, value, output, *biases, output_bias, **heads)


def from_torch_norm(module):
    return LayerNorm(array(module.weight), None if module.bias is None else array(module.bias), module.eps)


def from_torch_layer(module, activation, causal=False):
    network = FeedForward(
        array(module.linear1.weight).T,
        array(module.linear2.weight).T,
        None if module.linear1.bias is None else array(module.linear1.bias),
        None if module.linear2.bias is None else array(module.linear2.bias),
        activation=activation,
    )
    return EncoderLayer(
        from_torch_attention(module.self_attn, causal),
        from_torch_norm(module.norm1),
        network,
        from_torch_norm(module.norm2),
        module.norm_first,
    )


def torch_layer(activation, norm_first, bias=True):
    function = {"gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}.get(
        activation, getattr(torch.nn.functional, activation, None)
    )
    return randomised(
        torch.nn.TransformerEncoderLayer(
            D_MODEL, NUM_HEADS, D_FF, 0.0, function, norm_first=norm_first, batch_first=True, bias=bias
        )
    )


@pytest.fixture
def x(rng):
    return rng.standard_normal((3, 11, D_MODEL)).astype(np.float32)


def padding(dtype=torch.bool):
    return torch.arange(11) >= torch.tensor(LENGTHS)[:, None]  # True is padding, in torch's layers


def check(ours, theirs, lengths=(11, 11, 11)):
    for b, length in enumerate(lengths):
        np.testing.assert_allclose(ours[b, :length], theirs[b, :length].numpy(), rtol=1e-4, atol=2e-5)


MAKES = list(itertools.product(["gelu", "gelu_tanh", "relu", "silu"], [False, True], [True, False]))


@pytest.mark.parametrize(("activation", "norm_first", "bias"), MAKES)
@torch.no_grad()
def test_encoder_layer(x, activation, norm_first, bias):
    module = torch_layer(activation, norm_first, bias)
    stack = Encoder([from_torch_layer(module, activation)])
    theirs = module(torch.from_numpy(x), src_key_padding_mask=padding())
    check(stack(x, lengths=LENGTHS), theirs, LENGTHS)
    wide = module.double()(torch.from_numpy(x).double(), src_key_padding_mask=padding())
    specified = reference.encoder(x.astype(np.float64), stack, lengths=np.array(LENGTHS))
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(specified[b, :length], wide[b, :length].numpy(), rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_causal_encoder_layer(x):
    module = torch_layer("gelu", True)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(11)
    theirs = module(torch.from_numpy(x), src_mask=mask, is_causal=True)
    check(Encoder([from_torch_layer(module, "gelu", causal=True)])(x), theirs)


@torch.no_grad()
def test_encoder_with_final_norm(x):
    final = torch.nn.LayerNorm(D_MODEL)
    layer = torch_layer("relu", True)
    module = randomised(torch.nn.TransformerEncoder(layer, 3, final, enable_nested_tensor=False))
    layers = [from_torch_layer(one, "relu") for one in module.layers]
    theirs = module(torch.from_numpy(x), src_key_padding_mask=padding())
    check(Encoder(layers, from_torch_norm(module.norm))(x, lengths=LENGTHS), theirs, LENGTHS)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_multi_head_attention_and_its_weights(x, bias):
    module = randomised(torch.nn.MultiheadAttention(D_MODEL, NUM_HEADS, bias=bias, batch_first=True))
    heads, words = from_torch_attention(module), torch.from_numpy(x)
    theirs, weights = module(words, words, words, average_attn_weights=False, key_padding_mask=padding())
    check(heads(x, lengths=LENGTHS), theirs, LENGTHS)
    ours = heads.attention_weights(x, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        expected = weights[b, :, :length].numpy()
        np.testing.assert_allclose(ours[b, :, :length], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_norms(rng, x):
    words, weight = torch.from_numpy(x), rng.standard_normal(D_MODEL).astype(np.float32)
    layer = torch.nn.functional.layer_norm(words, (D_MODEL,), torch.from_numpy(weight), eps=1e-12)
    rms = torch.nn.functional.rms_norm(words, (D_MODEL,), torch.from_numpy(weight), eps=1e-6)
    check(LayerNorm(weight, eps=1e-12)(x), layer)
    check(RMSNorm(weight)(x), rms)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("relu", torch.nn.functional.relu),
        ("silu", torch.nn.functional.silu),
    ],
)
def test_activations_of_the_specification(name, function):
    x = np.linspace(-30, 30, 4001)
    expected = function(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(reference.ACTIVATIONS[name](x), expected, rtol=1e-12, atol=1e-15)
