"""Arguments of the layers that are of the wrong kind: each is named, with what to give instead."""

import numpy as np
import pytest
from layers.makers import D_MODEL, encoder, grouped, layer, random_cell, words

from selfattn.layers import (
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    MultiHeadSelfAttention,
    RMSNorm,
    SelfAttentionCell,
)

FINITE, NUMBER = "must be finite in float32", "must be a number"
SCALES = [
    (1e39, ValueError, FINITE),
    (-1e39, ValueError, FINITE),
    (10**400, ValueError, FINITE),
    (np.nan, ValueError, FINITE),
    ("1", TypeError, NUMBER),
    (True, TypeError, NUMBER),
]


@pytest.mark.parametrize(("scale", "error", "message"), SCALES)
def test_scale_is_a_number_that_float32_holds(rng, scale, error, message):
    with pytest.raises(error, match=f"scale=.* {message}"):
        grouped(rng, scale=scale)
    cell, x = random_cell(rng), words(rng, 3)
    for call in (cell, cell.attention_weights):
        with pytest.raises(error, match=f"scale=.* {message}"):
            call(x, scale=scale)


@pytest.mark.parametrize("causal", ["bottom_right", "top_left", 1, None])
def test_causal_is_true_or_false(rng, causal):
    with pytest.raises(ValueError, match=f"causal={causal!r} must be True or False"):
        grouped(rng, causal=causal)
    with pytest.raises(ValueError, match=f"causal={causal!r} must be True or False"):
        random_cell(rng)(words(rng, 3), causal=causal)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("eps", ["x", None, True])
def test_eps_is_a_number(norm, eps):
    with pytest.raises(TypeError, match=f"eps={eps!r} must be a number"):
        norm(np.ones(4), eps=eps)


@pytest.mark.parametrize("count", [4.0, "4", True])
def test_counts_of_heads_are_integers(count):
    eye = np.eye(8, dtype=np.float32)
    with pytest.raises(TypeError, match=f"num_heads={count!r} must be an integer"):
        MultiHeadSelfAttention(eye, eye, eye, num_heads=count)
    with pytest.raises(TypeError, match=f"num_kv_heads={count!r} must be an integer"):
        MultiHeadSelfAttention(eye, eye, eye, num_heads=4, num_kv_heads=count)


@pytest.mark.parametrize("rng", [None, 0])
@pytest.mark.parametrize(
    ("cls", "sizes"),
    [
        (SelfAttentionCell, (8, 4)),
        (MultiHeadSelfAttention, (8, 2)),
        (FeedForward, (8, 16)),
        (EncoderLayer, (8, 2, 16)),
    ],
)
def test_rng_is_a_generator(cls, sizes, rng):
    with pytest.raises(TypeError, match=rf"rng is a {type(rng).__name__}; .*default_rng"):
        cls.initialize(*sizes, rng=rng)


def test_parts_of_the_wrong_kind(rng):
    one = layer(rng)
    with pytest.raises(TypeError, match=r"layers is a EncoderLayer; .*\[layer\]"):
        Encoder(one)
    with pytest.raises(TypeError, match="final_norm is a ndarray; it must be a LayerNorm or RMSNorm"):
        Encoder([one], final_norm=np.ones(D_MODEL))
    with pytest.raises(TypeError, match=r"cells\[1\] is a int; it must be a SelfAttentionCell"):
        MultiHeadSelfAttention.from_cells([random_cell(rng), 2])


def test_an_unknown_argument_names_the_class_that_was_called(rng):
    for call in (layer(rng).__call__, layer(rng).attention_weights):
        with pytest.raises(TypeError, match=r"EncoderLayer\.\w+\(\) got an unexpected .*'bogus'"):
            call(words(rng, 3), bogus=1)


@pytest.mark.parametrize(("depth", "error"), [(-1, ValueError), (3, ValueError), (1.0, TypeError)])
def test_depth_is_within_the_encoder(rng, depth, error):
    with pytest.raises(error, match=f"depth={depth} must be"):
        encoder(rng, 2).hidden_states(words(rng, 3), depth=depth)
