"""The weights of a layer as a tree of arrays, and a layer made again from one."""

from functools import partial

import numpy as np
import pytest
from layers.derivatives import leaves
from layers.makers import encoder, grouped, layer, norm, random_cell, same_bits, words


def test_the_structure_of_the_weights(rng):
    stack = encoder(rng, final=True)
    names = {name for name, _ in leaves(stack.weights())}
    assert {"layers.1.attention.query_weight", "layers.0.attention_norm.bias", "final_norm.weight"} <= names
    assert list(stack.weights()["layers"][0]) == [
        "attention",
        "attention_norm",
        "feed_forward",
        "feed_forward_norm",
    ]
    assert set(random_cell(rng, bias=False).weights()) == {"query_weight", "key_weight", "value_weight"}
    assert set(norm(rng, "rms").weights()) == {"weight"}
    assert list(encoder(rng).weights()) == ["layers"]


@pytest.mark.parametrize("make", [random_cell, grouped, norm, layer, partial(encoder, final=True)])
def test_replace_gives_a_layer_of_the_same_settings(rng, make):
    one, other, x = make(rng), make(rng), words(rng, 3, 5)
    replaced = one.replace(other.weights())
    same_bits(replaced(x), other(x))
    for (name, new), (_, old) in zip(leaves(replaced.weights()), leaves(other.weights()), strict=True):
        assert new.shape == old.shape, name
        same_bits(new, old)
    causal = grouped(rng, causal=True, scale=0.5)
    assert causal.replace(grouped(rng).weights()).causal
    assert causal.replace(grouped(rng).weights()).scale == 0.5


def test_weights_that_do_not_fit_the_layer(rng):
    stack = encoder(rng)
    weights = stack.weights()
    del weights["layers"][1]["feed_forward"]["up_bias"]
    with pytest.raises(
        ValueError,
        match=r"layers\.1\.feed_forward\.weights holds up_weight, down_weight, down_bias; this FeedFor",
    ):
        stack.replace(weights)
    weights = stack.weights()
    weights["layers"][1]["attention"]["key_weight"] = np.full((24, 12), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"^layers\.1\.attention\.key_weight holds 288 NaN or Inf"):
        stack.replace(weights)
    with pytest.raises(TypeError, match=r"^layers\.0\.weights is a list; it must be a dict"):
        stack.replace({"layers": [[], []]})
    with pytest.raises(TypeError, match="layers is a int; it must be a list"):
        stack.replace({"layers": 2})
    with pytest.raises(ValueError, match="layers holds the weights of 1 layers; there are 2"):
        stack.replace({"layers": stack.weights()["layers"][:1]})
    cell = random_cell(rng)
    with pytest.raises(
        ValueError, match=r"key_weight has shape \(8, 24\); it replaces one of shape \(24, 8\)"
    ):
        cell.replace(cell.weights() | {"key_weight": cell.key_weight.T})
