# SPDX-License-Identifier: Apache-2.0
"""Encoders with every option of a layer: against the specification, and to the bit."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from support.accuracy import assert_as_exact_as_numpy
from support.bits import assert_all_the_same, on_every_isa_with_fma
from support.encoder_families import EVERY, FAMILIES, HEADS, layers_with, modernbert, t5, with_option
from support.layer_makers import D_MODEL, same_bits, words

from selfattn import reference
from selfattn.layers import Encoder, RelativeBias, RotaryPositions
from selfattn.layers.packing import packable

LENGTHS = np.array([40, 0, 1, 33, 7])


# ---- against the specification ----


@pytest.mark.parametrize("name", EVERY)
def test_an_encoder_is_as_exact_as_its_specification_in_float32(isa, rng, name):
    stack, x = EVERY[name](rng), words(rng, len(LENGTHS), 40)
    naive = reference.encoder(x, stack, lengths=LENGTHS)
    exact = reference.encoder(x.astype(np.float64), stack, lengths=LENGTHS)
    assert naive.dtype == np.float32
    assert_as_exact_as_numpy(stack(x, lengths=LENGTHS), naive, exact)


@pytest.mark.parametrize("name", EVERY)
def test_attention_weights_are_those_of_the_specification(rng, name):
    stack, x, lengths = EVERY[name](rng), words(rng, 3, 9), np.array([9, 2, 5])
    for i, layer in enumerate(stack.layers):
        before = layer.attention_norm if layer.norm_first else None
        seen = x if before is None else reference.norm(x.astype(np.float64), before)
        expected = reference.self_attention_weights(
            seen.astype(np.float64), layer.attention, lengths=lengths, shared_bias=stack.relative_bias
        )
        found = stack.attention_weights(x, lengths, layer=i)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        if stack.relative_bias is None:
            same_bits(found, layer.attention_weights(x, lengths=lengths))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_option_of_a_family_shows(rng, name):
    """With an option left out the result is another one, and so would be that of a layer that forgets it."""
    stack, x = FAMILIES[name](rng), words(rng, 1, 40)
    result = stack(x)
    for option in ("causal", "window", "softcap", "alibi_slopes", "rotary", "query_norm", "key_norm"):
        if any(getattr(layer.attention, option) for layer in stack.layers):
            without = [
                replace(
                    layer,
                    attention=replace(layer.attention, **{option: False if option == "causal" else None}),
                )
                for layer in stack.layers
            ]
            assert np.abs(replace(stack, layers=without)(x) - result).max() > 1e-3, option
    if stack.relative_bias is not None:
        assert np.abs(replace(stack, relative_bias=None)(x) - result).max() > 1e-3


# ---- one answer ----


@pytest.mark.parametrize("name", EVERY)
def test_padded_packed_and_alone_give_the_same_bits(rng, name):
    stack, x = EVERY[name](rng), words(rng, len(LENGTHS), 40)
    padded = stack(x, lengths=LENGTHS)
    real = np.arange(40) < LENGTHS[:, None]
    same_bits(stack(x[real], cu_seqlens=np.cumsum([0, *LENGTHS])), padded[real])
    for b, n in enumerate(LENGTHS):
        same_bits(stack(x[b, :n]), padded[b, :n])
        np.testing.assert_array_equal(padded[b, n:], 0)


@pytest.mark.parametrize("tokens", [(4, 9), (1, 97), (2, 600)])  # few rows, and blocks of them
@pytest.mark.parametrize("name", FAMILIES)
def test_threads_do_not_change_the_bits(rng, name, tokens):
    stack, x = FAMILIES[name](rng), words(rng, *tokens)
    alone = stack(x, num_threads=1)
    for num_threads in (2, 3):
        same_bits(stack(x, num_threads=num_threads), alone)


@pytest.mark.parametrize("name", EVERY)
def test_instruction_sets_do_not_change_the_bits(rng, name):
    stack, x = EVERY[name](rng), words(rng, 3, 20)
    assert_all_the_same(*on_every_isa_with_fma(lambda: replace(stack)(x)))


@pytest.mark.parametrize("name", EVERY)
def test_forward_gives_the_bits_of_the_call(isa, rng, name):
    """The call turns queries and keys in the compiled loop, the forward in NumPy."""
    stack, x = EVERY[name](rng), words(rng, len(LENGTHS), 40)
    same_bits(stack.forward(x, lengths=LENGTHS)[0], stack(x, lengths=LENGTHS))
    for layer in stack.layers:
        same_bits(layer.forward(x, lengths=LENGTHS)[0], layer(x, lengths=LENGTHS))
        same_bits(layer.attention.forward(x, lengths=LENGTHS)[0], layer.attention(x, lengths=LENGTHS))


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_are_the_input_of_each_layer(rng, name):
    stack, x = FAMILIES[name](rng), words(rng, 2, 30)
    states = stack.hidden_states(x, lengths=[30, 3])
    assert len(states) == len(stack.layers) + 1
    for before, layer, after in zip(states, stack._whole, states[1:], strict=False):
        same_bits(layer(before, lengths=[30, 3]), after)
    same_bits(stack.final_norm(states[-1])[0] if stack.final_norm else states[-1][0], stack(x)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_no_words_give_no_words(rng, name):
    stack = FAMILIES[name](rng)
    for shape, how in [
        ((0,), {}),
        ((0, 4), {}),
        ((3, 4), {"lengths": [0, 0, 0]}),
        ((0,), {"cu_seqlens": [0, 0]}),
    ]:
        np.testing.assert_array_equal(stack(words(rng, *shape), **how), np.zeros((*shape, D_MODEL)))
        np.testing.assert_array_equal(
            stack.forward(words(rng, *shape), **how)[0], np.zeros((*shape, D_MODEL))
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_pickling_keeps_the_bits_and_leaves_behind_what_follows(rng, name):
    stack, x = FAMILIES[name](rng), words(rng, 2, 80)
    before = len(pickle.dumps(stack))
    out = stack(x)
    assert len(pickle.dumps(stack)) == before
    same_bits(pickle.loads(pickle.dumps(stack))(x), out)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_near_and_batches_do_not_show(rng, name):
    stack, x = FAMILIES[name](rng), words(rng, 3, 7)
    rounded, expected = replace(stack, precision="bfloat16"), stack(x, lengths=[7, 1, 4])
    result = rounded(x, lengths=[7, 1, 4])
    assert np.abs(result - expected).max() <= 2**-4 * np.abs(expected).max()
    same_bits(rounded(x[2, :4], num_threads=2), result[2, :4])


# ---- tables of angles ----


def test_layers_share_the_tables_of_equal_rotary_positions(rng):
    stack = modernbert(rng)
    assert stack.layers[0].attention.rotary is not stack.layers[3].attention.rotary
    assert [turning.rotary.base for turning in stack._turnings] == [160000.0, 10000.0]
    numbers = [packable(layer, stack._turnings).rotary_table for layer in stack.layers]
    assert numbers == [0, 1, 1, 0]


def test_a_text_longer_than_the_tables(rng):
    """The tables grow, and the bits of a short text stay."""
    stack, x = with_option(rng, "rotary"), words(rng, 300)
    short = stack(x[:5])
    same_bits(stack(x), replace(stack)(x))
    same_bits(stack(x[:5]), short)
    fresh = Encoder([pickle.loads(pickle.dumps(layer)) for layer in stack.layers])
    same_bits(fresh(x), stack(x))


# ---- a relative bias for all ----


def test_a_layer_keeps_its_own_relative_bias(rng):
    stack, x = t5(rng), words(rng, 2, 9)
    own = replace(stack.layers[1].attention, relative_bias=RelativeBias(rng.standard_normal((4, HEADS))))
    layers = [stack.layers[0], replace(stack.layers[1], attention=own), stack.layers[2]]
    mixed = replace(stack, layers=layers)
    expected = reference.encoder(x.astype(np.float64), mixed)
    np.testing.assert_allclose(mixed(x), expected, rtol=2e-4, atol=2e-5)
    assert np.abs(mixed(x) - stack(x)).max() > 1e-3


def test_a_shared_relative_bias_that_does_not_fit(rng):
    layers = layers_with(rng, 2)
    with pytest.raises(ValueError, match=r"relative_bias is of 3 heads but layers\[0\] has 4"):
        Encoder(layers, relative_bias=RelativeBias(np.zeros((8, 3))))
    with pytest.raises(TypeError, match="relative_bias is a ndarray; it must be a RelativeBias, or None"):
        Encoder(layers, relative_bias=np.zeros((8, HEADS)))
    assert "relative_bias=RelativeBias(table=8x4" in repr(t5(rng))


@pytest.mark.parametrize(("layer", "error"), [(-1, ValueError), (3, ValueError), (1.0, TypeError)])
def test_the_layer_of_attention_weights_is_one_of_them(rng, layer, error):
    with pytest.raises(error, match=f"layer={layer} must be"):
        t5(rng).attention_weights(words(rng, 3), layer=layer)


def test_rotary_positions_of_other_heads_are_another_table(rng):
    rotary, x = RotaryPositions(), words(rng, 2, 70)
    layers = [*layers_with(rng, 1, rotary=rotary), *layers_with(rng, 1, rotary=rotary, head_dim=6)]
    stack = Encoder(layers)
    assert [turning.head_dim for turning in stack._turnings] == [8, 6]
    np.testing.assert_allclose(stack(x), reference.encoder(x.astype(np.float64), stack), rtol=2e-4, atol=2e-5)
