# SPDX-License-Identifier: Apache-2.0
"""FeedForward."""

import numpy as np
import pytest
from support.layer_makers import D_FF, D_MODEL, layer, same_bits, words

from selfattn import reference
from selfattn.layers import EncoderLayer, FeedForward

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_is_its_specification(rng, activation, gated):
    network, x = layer(rng, activation=activation, gated=gated).feed_forward, words(rng, 3, 5)
    expected = reference.feed_forward(x.astype(np.float64), network)
    np.testing.assert_allclose(network(x), expected, rtol=1e-4, atol=1e-5)
    assert network(words(rng, 0, 5)).shape == (0, 5, D_MODEL)


# ---- gate and up in one matrix ----


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate_first", [False, True])
def test_halves_of_a_joined_matrix(rng, gate_first, bias):
    apart = layer(rng, gated=True).feed_forward
    order = ("gate", "up") if gate_first else ("up", "gate")
    joined = np.hstack([getattr(apart, f"{role}_weight") for role in order])
    offset = np.hstack([getattr(apart, f"{role}_bias") for role in order]) if bias else None
    together = FeedForward.from_joined(
        joined, apart.down_weight, gate_first=gate_first, joined_bias=offset, down_bias=apart.down_bias
    )
    same = (
        apart
        if bias
        else FeedForward(
            apart.up_weight, apart.down_weight, None, apart.down_bias, apart.gate_weight, activation="gelu"
        )
    )
    x = words(rng, 5)
    same_bits(together(x), same(x))
    same_bits(layer_of(together)(x), layer_of(same)(x))


def layer_of(network):
    one = layer(np.random.default_rng(0))
    return EncoderLayer(one.attention, one.attention_norm, network, one.feed_forward_norm)


def test_halves_of_a_read_only_matrix_are_views(rng):
    joined = rng.standard_normal((D_MODEL, 2 * D_FF)).astype(np.float32)
    down = rng.standard_normal((D_FF, D_MODEL)).astype(np.float32)
    copied = FeedForward.from_joined(joined, down, gate_first=True)
    assert not np.shares_memory(copied.up_weight, joined)
    joined.flags.writeable = False
    network = FeedForward.from_joined(joined, down, gate_first=True)
    for half in (network.gate_weight, network.up_weight):
        assert np.shares_memory(half, joined)
        assert not half.flags.writeable
    np.testing.assert_array_equal(network.gate_weight, joined[:, :D_FF])


def test_joined_matrices_that_do_not_fit():
    down = np.eye(16, 8)
    with pytest.raises(ValueError, match="joined_weight has 31 columns; gate and up side by side"):
        FeedForward.from_joined(np.eye(8, 31), down, gate_first=True)
    with pytest.raises(ValueError, match="joined_bias has 16 values; the outputs it is added to are 32"):
        FeedForward.from_joined(np.eye(8, 32), down, gate_first=True, joined_bias=np.zeros(16))
    with pytest.raises(TypeError, match="gate_first='up' must be True or False"):
        FeedForward.from_joined(np.eye(8, 32), down, gate_first="up")
    with pytest.raises(ValueError, match="d_ff differs: 15 in up_weight, 16 in down_weight"):
        FeedForward.from_joined(np.eye(8, 30), down, gate_first=False)


def test_feed_forwards_that_do_not_fit_together():
    up, down = np.eye(8, 16), np.eye(16, 8)
    with pytest.raises(ValueError, match="d_ff differs: 16 in up_weight, 15 in down_weight"):
        FeedForward(up, down[:15])
    with pytest.raises(ValueError, match="d_ff differs: 16 in up_weight, 12 in gate_weight"):
        FeedForward(up, down, gate_weight=up[:, :12])
    with pytest.raises(ValueError, match=r'activation=.tanh. must be "gelu", "gelu_tanh", "relu" or "silu"'):
        FeedForward(up, down, activation="tanh")
    with pytest.raises(ValueError, match="gate_bias needs a gate_weight"):
        FeedForward(up, down, gate_bias=np.zeros(16))
    with pytest.raises(ValueError, match="up_weight holds 1 NaN or Inf"):
        FeedForward(np.where(np.arange(16) == 3, np.nan, up)[:1], down)
