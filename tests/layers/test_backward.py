# SPDX-License-Identifier: Apache-2.0
"""Gradients through the layers against central differences of the specification, and to the last bit."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support.bits import assert_all_the_same, on_every_isa_with_fma
from support.derivatives import assert_gradients, leaves
from support.encoder_families import EVERY, FAMILIES, HEADS, KV_HEADS, OPTIONS, layers_with, shaken, t5
from support.layer_makers import D_FF, D_MODEL, encoder, grouped, layer, norm, random_cell, same_bits, words

from selfattn import reference
from selfattn.layers import Encoder, EncoderLayer, FeedForward, MultiHeadSelfAttention, RelativeBias

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
MAKES = list(itertools.product([False, True], ["layer", "rms"], ACTIVATIONS, [False, True], [4, 2]))
LENGTHS = [7, 0, 1, 4]


def gradients_like(rng, y):
    return rng.standard_normal(y.shape).astype(np.float32)


def check(rng, one, function, x, how=None, specified_how=None):
    """forward is the call; backward is the slope of the specification."""
    how = {} if how is None else how
    y, saved = one.forward(x, **how)
    same_bits(y, one(x, **how))
    grad_y = gradients_like(rng, y)
    grad_x, grads = one.backward(saved, grad_y)
    specification = partial(function, **(how if specified_how is None else specified_how))
    assert_gradients(rng, one, specification, x, grad_y, grad_x, grads)


def same_gradients(left, right):
    for (name, one), (other_name, other) in zip(leaves(left), leaves(right), strict=True):
        assert name == other_name
        same_bits(one, other)


# ---- against the specification ----


@pytest.mark.parametrize(("norm_first", "kind", "activation", "gated", "num_kv_heads"), MAKES)
def test_every_make_of_layer(rng, norm_first, kind, activation, gated, num_kv_heads):
    settings = {"norm_first": norm_first, "kind": kind, "activation": activation, "gated": gated}
    one = layer(rng, num_kv_heads=num_kv_heads, **settings)
    check(rng, one, reference.encoder_layer, words(rng, 2, 6))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_in_depth(rng, norm_first, recompute):
    stack, x = encoder(rng, depth=3, final=norm_first, norm_first=norm_first), words(rng, 4, 7)
    y, saved = stack.forward(x, lengths=LENGTHS, recompute=recompute)
    same_bits(y, stack(x, lengths=LENGTHS))
    grad_y = gradients_like(rng, y)
    grad_x, grads = stack.backward(saved, grad_y)
    specification = partial(reference.encoder, lengths=np.array(LENGTHS))
    assert_gradients(rng, stack, specification, x, grad_y, grad_x, grads)


@pytest.mark.parametrize("settings", [{"causal": True}, {"scale": 0.05}])
def test_settings_of_the_attention(rng, settings):
    check(rng, encoder(rng, **settings), reference.encoder, words(rng, 2, 7))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", [{}, {"causal": True}, {"scale": 0.1}])
def test_a_cell(rng, bias, how):
    check(rng, random_cell(rng, bias), reference.self_attention_cell, words(rng, 3, 9), how)


def without_output(rng):
    return MultiHeadSelfAttention.from_cells([random_cell(rng) for _ in range(3)], causal=True)


def test_heads(rng):
    check(rng, grouped(rng), reference.self_attention, words(rng, 3, 9))
    check(rng, without_output(rng), reference.self_attention, words(rng, 3, 9))


def test_value_dim_may_differ_and_biases_may_be_missing(rng):
    attention = MultiHeadSelfAttention.initialize(
        D_MODEL, 4, num_kv_heads=2, head_dim=5, value_dim=7, rng=rng
    )
    network = FeedForward.initialize(D_MODEL, D_FF, activation="silu", gated=True, bias=False, rng=rng)
    stack = Encoder([EncoderLayer(attention, norm(rng), network, norm(rng, "rms"))])
    check(rng, stack, reference.encoder, words(rng, 2, 7))


def test_without_an_output_matrix_heads_go_straight_into_the_residual(rng):
    one = layer(rng)
    attention = MultiHeadSelfAttention.from_cells(one.attention.cells)
    stack = Encoder([EncoderLayer(attention, norm(rng), one.feed_forward, norm(rng))])
    check(rng, stack, reference.encoder, words(rng, 2, 7))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(rng, kind, shape):
    check(rng, norm(rng, kind), reference.norm, words(rng, *shape))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward(rng, activation, gated, shape):
    network = layer(rng, activation=activation, gated=gated).feed_forward
    check(rng, network, reference.feed_forward, words(rng, *shape))


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_heads(rng, option):
    heads = grouped(rng, HEADS, KV_HEADS, **OPTIONS[option](rng))
    check(rng, heads, reference.self_attention, words(rng, 3, 9))


@pytest.mark.parametrize("name", EVERY)
def test_every_option_in_depth(rng, name):
    stack, x = EVERY[name](rng), words(rng, 4, 7)
    specification = partial(reference.encoder, lengths=np.array(LENGTHS))
    y, saved = stack.forward(x, lengths=LENGTHS)
    grad_y = gradients_like(rng, y)
    grad_x, grads = stack.backward(saved, grad_y)
    assert_gradients(rng, stack, specification, x, grad_y, grad_x, grads)


@pytest.mark.parametrize("missing", list(itertools.product([False, True], repeat=4)))
def test_norms_that_are_missing(rng, missing):
    one = shaken(rng, layers_with(rng, 1, norm_first=True, post_norms=True)[0])
    names = ("attention_norm", "feed_forward_norm", "attention_post_norm", "feed_forward_post_norm")
    without = {name: None for name, is_missing in zip(names, missing, strict=True) if is_missing}
    check(rng, replace(one, **without), reference.encoder_layer, words(rng, 2, 6))


def test_a_shared_relative_bias_has_the_sum_of_the_gradients_of_its_layers(rng):
    """In the order of the layers, and not those of a layer that has its own."""
    stack, x = t5(rng), words(rng, 2, 9)
    own = replace(stack.layers[1].attention, relative_bias=RelativeBias(rng.standard_normal((4, HEADS))))
    stack = replace(stack, layers=[stack.layers[0], replace(stack.layers[1], attention=own), stack.layers[2]])
    check(rng, stack, reference.encoder, x)
    y, saved = stack.forward(x)
    grad_y = gradients_like(rng, y)
    _, grads = stack.backward(saved, grad_y)
    whole = replace(stack, layers=stack._whole, relative_bias=None)
    _, saved = whole.forward(x)
    _, apart = whole.backward(saved, grad_y)
    tables = [apart["layers"][i]["attention"]["relative_bias"]["table"] for i in (0, 2)]
    same_bits(grads["relative_bias"]["table"], (tables[0].astype(np.float64) + tables[1]).astype(np.float32))
    assert list(grads) == list(stack.weights())


# ---- one answer ----


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_threads_do_not_change_the_bits_of_a_family(rng, name, num_threads):
    stack, x = FAMILIES[name](rng), words(rng, 9, 40)
    y, saved = stack.forward(x, num_threads=1)
    grad_y = gradients_like(rng, y)
    grad_x, grads = stack.backward(saved, grad_y, num_threads=1)
    threaded_x, threaded = stack.backward(saved, grad_y, num_threads=num_threads)
    same_bits(threaded_x, grad_x)
    same_gradients(threaded, grads)


@pytest.mark.parametrize("name", EVERY)
def test_instruction_sets_do_not_change_the_bits_of_gradients(rng, name):
    stack, x = EVERY[name](rng), words(rng, 3, 20)
    grad_y = gradients_like(rng, x)

    def compute():
        grad_x, grads = stack.backward(stack.forward(x)[1], grad_y)
        return grad_x, *(array for _, array in leaves(grads))

    assert_all_the_same(*on_every_isa_with_fma(compute))


@pytest.mark.parametrize("name", EVERY)
def test_padding_packing_and_recomputing_give_the_same_gradients(rng, name):
    stack, x, real = EVERY[name](rng), words(rng, 4, 9), np.arange(9) < np.array(LENGTHS)[:, None]
    y, saved = stack.forward(x, lengths=LENGTHS)
    grad_y = gradients_like(rng, y)
    grad_x, grads = stack.backward(saved, grad_y)
    np.testing.assert_array_equal(grad_x[~real], 0)
    for how in ({}, {"recompute": True}):
        _, saved = stack.forward(x[real], cu_seqlens=np.cumsum([0, *LENGTHS]), **how)
        packed_x, packed = stack.backward(saved, grad_y[real])
        same_bits(packed_x, grad_x[real])
        same_gradients(packed, grads)
    for b, n in enumerate(LENGTHS):
        _, saved = stack.forward(x[b, :n])
        same_bits(stack.backward(saved, grad_y[b, :n])[0], grad_x[b, :n])


@pytest.mark.parametrize("name", FAMILIES)
def test_backward_of_a_family_can_be_repeated_and_no_words_give_no_gradients(rng, name):
    stack, x = FAMILIES[name](rng), words(rng, 3, 5)
    y, saved = stack.forward(x)
    grad_y = gradients_like(rng, y)
    (grad_x, grads), before = stack.backward(saved, grad_y), (x.copy(), grad_y.copy())
    y[...] = np.nan
    again_x, again = stack.backward(saved, grad_y)
    same_bits(again_x, grad_x)
    same_gradients(again, grads)
    same_bits(x, before[0])
    same_bits(grad_y, before[1])
    y, saved = stack.forward(words(rng, 3, 4), lengths=[0, 0, 0])
    grad_x, grads = stack.backward(saved, gradients_like(rng, y))
    np.testing.assert_array_equal(grad_x, np.zeros((3, 4, D_MODEL)))
    for at, grad in leaves(grads):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape), at)


@pytest.mark.parametrize(
    ("norm_first", "gated"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_forward_gives_the_bits_of_the_call(isa, rng, norm_first, gated):
    """The compiled stack takes query, key and value as one product, gate and up as another, and groups of
    sequences; it adds the residual to a product after the bias. No bit depends on the first three, and the
    forward adds in the same order.
    """
    stack = encoder(rng, final=norm_first, norm_first=norm_first, gated=gated)
    x = words(rng, 300, 5)  # more than one group
    for how in ({}, {"lengths": rng.integers(0, 6, 300)}):
        y, _ = stack.forward(x, **how)
        same_bits(y, stack(x, **how))
        alone = stack.layers[0]
        same_bits(alone.forward(x, **how)[0], alone(x, **how))


@pytest.mark.parametrize("make", [random_cell, grouped, layer, encoder])
def test_padded_and_packed_give_the_same_bits(rng, make):
    one, x = make(rng), words(rng, 4, 9)
    rows = np.arange(9) < np.array(LENGTHS)[:, None]
    y, saved = one.forward(x, lengths=LENGTHS)
    grad_y = gradients_like(rng, y)
    grad_y[~rows] = np.nan  # nothing that stands in the padding counts
    grad_x, grads = one.backward(saved, grad_y)
    np.testing.assert_array_equal(grad_x[~rows], 0)
    _, saved = one.forward(x[rows], cu_seqlens=np.cumsum([0, *LENGTHS]))
    packed_x, packed = one.backward(saved, grad_y[rows])
    same_bits(packed_x, grad_x[rows])
    same_gradients(packed, grads)


@pytest.mark.parametrize("make", [random_cell, grouped, layer, encoder])
def test_the_gradient_of_a_sequence_does_not_depend_on_its_neighbours(rng, make):
    one, x = make(rng), words(rng, 4, 9)
    y, saved = one.forward(x, lengths=LENGTHS)
    grad_y = gradients_like(rng, y)
    grad_x, _ = one.backward(saved, grad_y)
    for b, n in enumerate(LENGTHS):
        _, saved = one.forward(x[b, :n])
        same_bits(one.backward(saved, grad_y[b, :n])[0], grad_x[b, :n])


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("make", [random_cell, grouped, layer, partial(layer, gated=True), encoder])
def test_threads_do_not_change_the_bits(rng, make, num_threads):
    one, x = make(rng), words(rng, 20, 40)
    y, saved = one.forward(x, num_threads=1)
    grad_y = gradients_like(rng, y)
    grad_x, grads = one.backward(saved, grad_y, num_threads=1)
    _, saved = one.forward(x, num_threads=num_threads)
    threaded_x, threaded = one.backward(saved, grad_y, num_threads=num_threads)
    same_bits(threaded_x, grad_x)
    same_gradients(threaded, grads)


@pytest.mark.parametrize("norm_first", [False, True])
def test_recomputing_gives_the_same_bits_from_the_inputs_of_the_layers_alone(rng, norm_first):
    stack, x = encoder(rng, depth=3, final=True, norm_first=norm_first, gated=True), words(rng, 4, 9)
    y, saved = stack.forward(x, lengths=LENGTHS)
    grad_y = gradients_like(rng, y)
    grad_x, grads = stack.backward(saved, grad_y)
    _, kept = stack.forward(x, lengths=LENGTHS, recompute=True)
    again_x, again = stack.backward(kept, grad_y)
    same_bits(again_x, grad_x)
    same_gradients(again, grads)
    states = [state[np.arange(9) < np.array(LENGTHS)[:, None]] for state in stack.hidden_states(x, LENGTHS)]
    for kept_state, state in zip(kept[1].layers, states[:-1], strict=True):
        same_bits(kept_state, state)


@pytest.mark.parametrize(
    "make", [random_cell, grouped, norm, layer, partial(layer, norm_first=True), encoder]
)
def test_backward_leaves_its_arguments_alone_and_can_be_repeated(rng, make):
    one, x = make(rng), words(rng, 3, 5)
    before = x.copy()
    y, saved = one.forward(x)
    grad_y = gradients_like(rng, y)
    grad_before = grad_y.copy()
    grad_x, grads = one.backward(saved, grad_y)
    first = grad_x.copy()
    again_x, again = one.backward(saved, grad_y)
    same_bits(x, before)
    same_bits(grad_y, grad_before)
    same_bits(grad_x, first)
    same_bits(again_x, first)
    same_gradients(again, grads)
    assert not np.shares_memory(grad_x, grad_y)


@pytest.mark.parametrize("make", [random_cell, grouped, without_output, norm, layer, encoder])
def test_the_result_is_the_callers_to_change(rng, make):
    one, x = make(rng), words(rng, 3, 5)
    y, saved = one.forward(x)
    grad_y = gradients_like(rng, y)
    grad_x, grads = one.backward(saved, grad_y)
    y[...] = np.nan
    again_x, again = one.backward(saved, grad_y)
    same_bits(again_x, grad_x)
    same_gradients(again, grads)


@pytest.mark.parametrize("make", [random_cell, grouped, encoder])
def test_no_words_give_no_gradients(rng, make):
    one = make(rng)
    for shape, how in [
        ((0,), {}),
        ((0, 4), {}),
        ((3, 4), {"lengths": [0, 0, 0]}),
        ((0,), {"cu_seqlens": [0]}),
    ]:
        y, saved = one.forward(words(rng, *shape), **how)
        grad_x, grads = one.backward(saved, gradients_like(rng, y))
        np.testing.assert_array_equal(grad_x, np.zeros((*shape, D_MODEL)))
        for name, grad in leaves(grads):
            np.testing.assert_array_equal(grad, np.zeros(grad.shape), name)


# ---- bad input ----


@pytest.mark.parametrize(
    "make", [random_cell, grouped, norm, lambda rng: layer(rng).feed_forward, layer, encoder]
)
def test_gradients_that_do_not_fit(rng, make):
    one, x = make(rng), words(rng, 3, 5)
    y, saved = one.forward(x)
    with pytest.raises(TypeError, match=r"grad_y has dtype float64.*grad_y\.astype"):
        one.backward(saved, y.astype(np.float64))
    with pytest.raises(ValueError, match=r"grad_y has shape \(2, 5, .*the gradient of has \(3, 5, "):
        one.backward(saved, y[:2])


@pytest.mark.parametrize("make", [random_cell, grouped, layer, encoder])
def test_words_that_do_not_fit(rng, make):
    with pytest.raises(TypeError, match="x has dtype float64"):
        make(rng).forward(np.zeros((3, D_MODEL)))
    with pytest.raises(ValueError, match="both given"):
        make(rng).forward(words(rng, 5), lengths=[5], cu_seqlens=[0, 5])
