# SPDX-License-Identifier: Apache-2.0
"""EncoderLayer: every make of it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support.encoder_families import NORMS, layers_with, shaken
from support.layer_makers import D_FF, D_MODEL, encoder, layer, norm, same_bits, words

from selfattn import reference
from selfattn.layers import Encoder, EncoderLayer, FeedForward, LayerNorm, MultiHeadSelfAttention

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
NAMES = ("attention_norm", "feed_forward_norm", "attention_post_norm", "feed_forward_post_norm")
MAKES = list(itertools.product([False, True], ["layer", "rms"], ACTIVATIONS, [False, True], [4, 2]))


def specified(x, stack, **how):
    return reference.encoder(x.astype(np.float64), stack, **how)


@pytest.mark.parametrize(("norm_first", "kind", "activation", "gated", "num_kv_heads"), MAKES)
def test_every_make_of_layer_is_its_specification(rng, norm_first, kind, activation, gated, num_kv_heads):
    settings = {"norm_first": norm_first, "kind": kind, "activation": activation, "gated": gated}
    stack = encoder(rng, final=norm_first, num_kv_heads=num_kv_heads, **settings)
    x = words(rng, 3, 7)
    expected = specified(x, stack, lengths=np.array([7, 1, 4]))
    np.testing.assert_allclose(stack(x, lengths=[7, 1, 4]), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("settings", [{"causal": True}, {"scale": 0.05}])
def test_settings_of_the_attention_reach_the_stack(rng, settings):
    stack, x = encoder(rng, **settings), words(rng, 2, 7)
    plain = [replace(one, attention=replace(one.attention, causal=False, scale=None)) for one in stack.layers]
    np.testing.assert_allclose(stack(x), specified(x, stack), rtol=2e-4, atol=2e-5)
    assert np.abs(stack(x) - Encoder(plain)(x)).max() > 1e-2


def test_value_dim_may_differ_and_biases_may_be_missing(rng):
    attention = MultiHeadSelfAttention.initialize(
        D_MODEL, 4, num_kv_heads=2, head_dim=5, value_dim=7, rng=rng
    )
    network = FeedForward.initialize(D_MODEL, D_FF, activation="silu", gated=True, bias=False, rng=rng)
    stack, x = Encoder([EncoderLayer(attention, norm(rng), network, norm(rng, "rms"))]), words(rng, 2, 7)
    np.testing.assert_allclose(stack(x), specified(x, stack), rtol=2e-4, atol=2e-5)


def test_a_bias_on_one_of_two_joined_matrices(rng):
    def weight(*shape):
        return rng.standard_normal(shape) / 5

    attention = MultiHeadSelfAttention(
        *(weight(D_MODEL, D_MODEL) for _ in range(4)),
        key_bias=weight(D_MODEL),
        value_bias=weight(D_MODEL),
        num_heads=4,
    )
    network = FeedForward(
        weight(D_MODEL, D_FF),
        weight(D_FF, D_MODEL),
        gate_weight=weight(D_MODEL, D_FF),
        gate_bias=weight(D_FF),
    )
    stack, x = Encoder([EncoderLayer(attention, norm(rng), network, norm(rng))]), words(rng, 2, 7)
    np.testing.assert_allclose(stack(x), specified(x, stack), rtol=2e-4, atol=2e-5)


def test_without_an_output_matrix_heads_go_straight_into_the_residual(rng):
    one = layer(rng)
    attention = MultiHeadSelfAttention.from_cells(one.attention.cells)
    stack, x = Encoder([EncoderLayer(attention, norm(rng), one.feed_forward, norm(rng))]), words(rng, 2, 7)
    np.testing.assert_allclose(stack(x), specified(x, stack), rtol=2e-4, atol=2e-5)


def test_attention_weights_of_a_pre_norm_layer_look_at_normed_words(rng):
    post, pre, x = layer(rng), layer(rng, norm_first=True), words(rng, 2, 5)
    same_bits(post.attention_weights(x), post.attention.attention_weights(x))
    same_bits(pre.attention_weights(x), pre.attention.attention_weights(pre.attention_norm(x)))


# ---- norms before, after, both ----


@pytest.mark.parametrize("missing", list(itertools.product([False, True], repeat=4)))
def test_every_norm_of_a_pre_norm_layer_may_be_missing(rng, missing):
    one = shaken(rng, layers_with(rng, 1, **NORMS["both"])[0])
    one = replace(one, **{name: None for name, is_missing in zip(NAMES, missing, strict=True) if is_missing})
    x = words(rng, 2, 9)
    expected = reference.encoder_layer(x.astype(np.float64), one)
    np.testing.assert_allclose(one(x), expected, rtol=2e-4, atol=2e-5)
    same_bits(one.forward(x)[0], one(x))
    left = [name for name, is_missing in zip(NAMES, missing, strict=True) if not is_missing]
    assert [name for name in NAMES if name in one.weights()] == left


def test_attention_weights_of_a_layer_without_its_first_norm(rng):
    one = replace(layer(rng, norm_first=True), attention_norm=None)
    x = words(rng, 2, 5)
    same_bits(one.attention_weights(x), one.attention.attention_weights(x))


def test_norms_that_need_norm_first(rng):
    one, extra = layer(rng), norm(rng)
    for name in NAMES[:2]:
        with pytest.raises(ValueError, match=f"{name} is None; only a layer with norm_first goes without"):
            replace(one, **{name: None})
    for name in NAMES[2:]:
        with pytest.raises(
            ValueError, match="attention_post_norm and feed_forward_post_norm need norm_first"
        ):
            replace(one, **{name: extra})
        with pytest.raises(ValueError, match=f"{name} is 25 wide; it must be d_model=24"):
            replace(one, norm_first=True, **{name: LayerNorm(np.ones(D_MODEL + 1))})
        with pytest.raises(TypeError, match=f"{name} is a FeedForward; it must be a LayerNorm or RMSNorm"):
            replace(one, norm_first=True, **{name: one.feed_forward})


def test_initialize_takes_norms_and_the_options_of_attention(rng):
    how = {"norm_first": True, "post_norms": True, "norm": "rms", "num_kv_heads": 2, "head_dim": 6}
    one = EncoderLayer.initialize(32, 4, 64, window=(5, 0), softcap=2.0, causal=True, **how, rng=rng)
    heads = one.attention
    assert (heads.window, heads.softcap, heads.causal, heads.num_kv_heads) == ((5, 0), 2.0, True, 2)
    assert heads.head_dim == 6
    assert all(getattr(one, name).kind == "rms" for name in NAMES)
    with pytest.raises(TypeError, match="'bogus'"):
        EncoderLayer.initialize(32, 4, 64, bogus=1, rng=rng)


def test_layers_that_do_not_fit_together(rng):
    one = layer(rng)
    wide = LayerNorm(np.ones(D_MODEL + 1))
    with pytest.raises(ValueError, match="attention_norm is 25 wide; it must be d_model=24"):
        EncoderLayer(one.attention, wide, one.feed_forward, one.feed_forward_norm)
    network = FeedForward.initialize(D_MODEL + 1, D_FF, rng=rng)
    with pytest.raises(ValueError, match="the input of feed_forward is 25 wide; it must be d_model=24"):
        EncoderLayer(one.attention, one.attention_norm, network, one.feed_forward_norm)
    with pytest.raises(
        TypeError, match="feed_forward_norm is a FeedForward; it must be a LayerNorm or RMSNorm"
    ):
        EncoderLayer(one.attention, one.attention_norm, one.feed_forward, one.feed_forward)
    with pytest.raises(TypeError, match="attention is a LayerNorm; it must be a MultiHeadSelfAttention"):
        EncoderLayer(one.attention_norm, one.attention_norm, one.feed_forward, one.attention_norm)
