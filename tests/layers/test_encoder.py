# SPDX-License-Identifier: Apache-2.0
"""Layers in depth: padded, packed and alone to the bit; hidden states, packing, precision."""

import itertools
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
from support.layer_makers import D_MODEL, encoder, layer, norm, same_bits, words

import selfattn
from selfattn import reference
from selfattn._native import runtime as _runtime
from selfattn.layers import Encoder, EncoderLayer
from selfattn.layers.packing import packable

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
MAKES = list(itertools.product([False, True], ["layer", "rms"], ACTIVATIONS, [False, True], [4, 2]))


def specified(x, stack, **how):
    return reference.encoder(x.astype(np.float64), stack, **how)


# ---- one answer ----


@pytest.mark.parametrize("norm_first", [False, True])
def test_padded_packed_and_alone_give_the_same_bits(rng, norm_first):
    stack = encoder(rng, norm_first=norm_first, final=norm_first, gated=True)
    lengths = [9, 0, 1, 5, 9]
    x = words(rng, 5, 11)
    padded = stack(x, lengths=lengths)
    packed = stack(
        np.concatenate([x[b, :n] for b, n in enumerate(lengths)]), cu_seqlens=np.cumsum([0, *lengths])
    )
    same_bits(packed, np.concatenate([padded[b, :n] for b, n in enumerate(lengths)]))
    for b, n in enumerate(lengths):
        same_bits(padded[b, :n], stack(x[b, :n]))
        np.testing.assert_array_equal(padded[b, n:], 0)


def test_nan_in_the_padding_or_in_a_neighbour_stays_there(rng):
    stack, x = encoder(rng), words(rng, 3, 5)
    clean = stack(x, lengths=[5, 2, 4])
    x[0], x[1, 2:] = np.nan, np.nan
    out = stack(x, lengths=[5, 2, 4])
    same_bits(out[1:], clean[1:])
    assert np.isnan(out[0]).all()


@pytest.mark.parametrize("form", [{}, {"norm_first": True, "gated": True}])
@pytest.mark.parametrize("tokens", [(4, 9), (1, 97), (7, 61), (2, 600)])  # few rows, and blocks of them
def test_threads_do_not_change_the_bits(rng, tokens, form):
    stack, x = encoder(rng, final=True, **form), words(rng, *tokens)
    alone = stack(x, num_threads=1)
    same_bits(alone, stack.forward(x, num_threads=1)[0])  # one operator after the other, over all rows
    for num_threads in (2, 3, 7):
        same_bits(stack(x, num_threads=num_threads), alone)
    rounded = replace(stack, precision="bfloat16")
    same_bits(rounded(x, num_threads=2), rounded(x, num_threads=1))


def test_instruction_sets_do_not_change_the_bits(rng):
    layers, x, before = encoder(rng, gated=True).layers, words(rng, 4, 9), selfattn.active_isa()
    outs = {}
    try:
        for isa in selfattn.available_isas():
            _runtime.use_isa(isa)
            outs[isa] = Encoder(layers)(x)  # an Encoder packs for the instruction set of its first call
    finally:
        _runtime.use_isa(before)
    np.testing.assert_allclose(outs.pop("baseline"), specified(x, Encoder(layers)), rtol=2e-4, atol=2e-5)
    for out in outs.values():
        same_bits(out, next(iter(outs.values())))


def test_no_words_give_no_words(rng):
    stack = encoder(rng, final=True)
    for shape, how in [
        ((0,), {}),
        ((0, 4), {}),
        ((0, 4), {"lengths": []}),
        ((3, 0), {}),
        ((3, 4), {"lengths": [0, 0, 0]}),
        ((0,), {"cu_seqlens": [0]}),
        ((0,), {"cu_seqlens": [0, 0]}),
    ]:
        np.testing.assert_array_equal(stack(words(rng, *shape), **how), np.zeros((*shape, D_MODEL)))


def test_the_input_is_left_alone(rng):
    stack, x = encoder(rng), words(rng, 2, 5)
    before = x.copy()
    out = stack(x)
    same_bits(x, before)
    assert not np.shares_memory(out, x)


# ---- what a view needs ----


def test_hidden_states_are_the_input_of_each_layer(rng):
    stack, x = encoder(rng, 3, final=True), words(rng, 2, 5)
    states = stack.hidden_states(x, lengths=[5, 3])
    assert len(states) == 4
    same_bits(states[0][0], x[0])
    np.testing.assert_array_equal(states[0][1, 3:], 0)
    for before, one, after in zip(states, stack.layers, states[1:], strict=False):
        same_bits(one(before, lengths=[5, 3]), after)
    np.testing.assert_array_equal(stack(x, lengths=[5, 3])[0], stack.final_norm(states[-1])[0])


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_hidden_states_stop_at_depth(rng, depth):
    stack, x = encoder(rng, 3), words(rng, 2, 5)
    states, ran = stack.hidden_states(x), []

    class Spy:
        def run(self, *arguments):
            ran.append(arguments[3:])
            return PACKED.run(*arguments)

    PACKED = stack._packed
    object.__setattr__(stack, "_packed", Spy())
    some = stack.hidden_states(x, depth=depth)
    assert ran == [(i, i + 1) for i in range(depth)]
    for left, right in zip(some, states[: depth + 1], strict=True):
        same_bits(left, right)


# ---- packing ----


def test_only_what_is_put_side_by_side_is_copied_for_the_stack(rng):
    plain, gated = layer(rng), layer(rng, gated=True)
    assert packable(plain, []).up.weight is plain.feed_forward.up_weight
    assert packable(plain, []).down.weight is plain.feed_forward.down_weight
    network = gated.feed_forward
    np.testing.assert_array_equal(
        packable(gated, []).up.weight, np.hstack([network.gate_weight, network.up_weight])
    )


def test_pickling_leaves_the_packed_weights_behind(rng):
    stack, x = encoder(rng, final=True), words(rng, 2, 5)
    before = len(pickle.dumps(stack))
    out = stack(x)
    assert len(pickle.dumps(stack)) == before
    same_bits(pickle.loads(pickle.dumps(stack))(x), out)


def test_threads_may_share_a_new_encoder(rng):
    stack, x, barrier, outs = encoder(rng), words(rng, 2, 5), threading.Barrier(4), []

    def run():
        barrier.wait()
        outs.append(stack(x))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outs) == 4
    for out in outs[1:]:
        same_bits(out, outs[0])


# ---- bad input ----


def test_encoders_that_do_not_fit_together(rng):
    with pytest.raises(ValueError, match="0 layers"):
        Encoder([])
    other = EncoderLayer.initialize(32, 4, 64, rng=rng)
    with pytest.raises(ValueError, match=r"layers\[1\] has d_model=32 but layers\[0\] has 24"):
        Encoder([layer(rng), other])
    with pytest.raises(TypeError, match=r"layers\[0\] is a FeedForward"):
        Encoder([other.feed_forward])
    with pytest.raises(ValueError, match="final_norm is 24 wide but d_model=32"):
        Encoder([other], norm(rng))


@pytest.mark.parametrize("make", [norm, lambda rng: layer(rng).feed_forward, encoder])
def test_words_that_do_not_fit(rng, make):
    with pytest.raises(TypeError, match="x has dtype float64"):
        make(rng)(np.zeros((3, D_MODEL)))
    with pytest.raises(ValueError, match=r"23.*24"):
        make(rng)(np.zeros((3, D_MODEL - 1), np.float32))


# ---- precision ----


@pytest.mark.parametrize("gated", [False, True])
def test_bfloat16_is_near_the_specification_and_batches_do_not_show(rng, gated):
    stack = encoder(rng, gated=gated)
    rounded, x = replace(stack, precision="bfloat16"), words(rng, 3, 7)
    result, expected = rounded(x, lengths=[7, 1, 4]), specified(x, stack, lengths=np.array([7, 1, 4]))
    assert np.abs(result - expected).max() <= 2**-5 * np.abs(expected).max()
    packed = rounded(np.concatenate([x[0], x[1, :1], x[2, :4]]), cu_seqlens=[0, 7, 8, 12])
    same_bits(packed, np.concatenate([result[0], result[1, :1], result[2, :4]]))
    same_bits(rounded(x[2, :4], num_threads=2), result[2, :4])


def test_precision_stays_with_an_encoder_and_is_checked(rng, tmp_path):
    stack = replace(encoder(rng), precision="bfloat16")
    assert stack.replace(stack.weights()).precision == "bfloat16"
    assert pickle.loads(pickle.dumps(stack)).precision == "bfloat16"
    stack.save(tmp_path / "stack.safetensors")
    assert Encoder.load(tmp_path / "stack.safetensors").precision == "bfloat16"
    assert "bfloat16" in repr(stack)
    with pytest.raises(ValueError, match=r'precision=.int8. must be None or "bfloat16"'):
        replace(stack, precision="int8")
