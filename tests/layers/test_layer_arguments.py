# SPDX-License-Identifier: Apache-2.0
"""Arguments of the layers that are of the wrong kind: each is named, with what to give instead."""

import numpy as np
import pytest
from support.layer_makers import D_MODEL, encoder, layer, random_cell, words

from selfattn.layers import (
    Encoder,
    MultiHeadSelfAttention,
)


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
