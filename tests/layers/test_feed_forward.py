"""FeedForward."""

import numpy as np
import pytest
from support.layer_makers import D_MODEL, layer, words

from selfattn import reference
from selfattn.layers import FeedForward

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_is_its_specification(rng, activation, gated):
    network, x = layer(rng, activation=activation, gated=gated).feed_forward, words(rng, 3, 5)
    expected = reference.feed_forward(x.astype(np.float64), network)
    np.testing.assert_allclose(network(x), expected, rtol=1e-4, atol=1e-5)
    assert network(words(rng, 0, 5)).shape == (0, 5, D_MODEL)


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
