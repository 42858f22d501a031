# SPDX-License-Identifier: Apache-2.0
"""Encoders with every option of a layer: each alone, and together as families of models have them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from support.derivatives import mapped
from support.layer_makers import D_FF, D_MODEL, HEAD_DIM

from selfattn.layers import (
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    RelativeBias,
    RMSNorm,
    RotaryPositions,
)

HEADS, KV_HEADS = 4, 2
Maker = Callable[[np.random.Generator], Any]


def _scale(rng, width):
    return 1 + rng.standard_normal(width) / 5


def _bias(rng, **how):
    return RelativeBias(rng.standard_normal((8, HEADS)), **{"max_distance": 6} | how)


def _norms_of_heads(rng):
    """Of each query by itself; of all keys of a word together, with a bias."""
    width = KV_HEADS * HEAD_DIM
    key_norm = LayerNorm(_scale(rng, width), rng.standard_normal(width) / 5)
    return {"query_norm": RMSNorm(_scale(rng, HEAD_DIM)), "key_norm": key_norm}


OPTIONS: dict[str, Maker] = {  # of a MultiHeadSelfAttention of HEADS, KV_HEADS and HEAD_DIM
    "window": lambda rng: {"window": (3, 1)},
    "one-sided window": lambda rng: {"window": (None, 0)},
    "softcap": lambda rng: {"softcap": 0.7},
    "alibi": lambda rng: {"alibi_slopes": (0.5, 0.25, 0.0, -0.125)},
    "sinks": lambda rng: {"sinks": rng.standard_normal(HEADS)},
    "rotary": lambda rng: {"rotary": RotaryPositions()},
    "rotary of a part": lambda rng: {"rotary": RotaryPositions(100.0, rotary_dim=6, interleaved=True)},
    "rotary scaled": lambda rng: {"rotary": RotaryPositions(frequencies=(1, 0.3, 0.2, 0.1), factor=1.25)},
    "norms of heads": _norms_of_heads,
    "query norm": lambda rng: {"query_norm": LayerNorm(_scale(rng, HEADS * HEAD_DIM))},
    "relative bias": lambda rng: {"relative_bias": _bias(rng)},
    "causal relative bias": lambda rng: {"relative_bias": _bias(rng, bidirectional=False), "causal": True},
}
OPTIONS["together"] = lambda rng: {
    name: value
    for option in (
        "window",
        "softcap",
        "alibi",
        "sinks",
        "norms of heads",
        "rotary of a part",
        "relative bias",
    )
    for name, value in OPTIONS[option](rng).items()
}
NORMS: dict[str, dict[str, Any]] = {
    "after": {},
    "before": {"norm_first": True},
    "both": {"norm_first": True, "post_norms": True, "norm": "rms"},
}


def shaken(rng, layer):
    """The layer with other weights: no bias is 0 and no norm is 1."""
    return layer.replace(
        mapped(layer.weights(), lambda _, w: w + (rng.standard_normal(w.shape) / 8).astype(np.float32))
    )


def layers_with(rng, depth, **how):
    sizes: dict[str, Any] = {"num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "rng": rng}
    return [EncoderLayer.initialize(D_MODEL, HEADS, D_FF, **sizes | how) for _ in range(depth)]


def with_option(rng, option, norms="after", depth=2):
    """Two layers, each with an option of its own numbers."""
    layers = [layers_with(rng, 1, **OPTIONS[option](rng), **NORMS[norms])[0] for _ in range(depth)]
    return shaken(rng, Encoder(layers))


def modernbert(rng):
    """Norms before, none before the first attention; no biases; two layers of three see a window and turn by
    another base; gate and up in one matrix.
    """
    layers = []
    for i in range(4):
        rotary = RotaryPositions(160000.0) if i % 3 == 0 else RotaryPositions(10000.0)
        window = None if i % 3 == 0 else (3, 3)
        (one,) = layers_with(
            rng, 1, norm_first=True, bias=False, num_kv_heads=HEADS, rotary=rotary, window=window
        )
        joined, down = rng.standard_normal((D_MODEL, 2 * D_FF)) / 5, one.feed_forward.down_weight
        layers.append(replace(one, feed_forward=FeedForward.from_joined(joined, down, gate_first=True)))
    layers[0] = replace(layers[0], attention_norm=None)
    return shaken(rng, Encoder(layers, LayerNorm(_scale(rng, D_MODEL))))


def qwen(rng):
    """Causal, grouped heads, each query and key normed by itself and then turned, a gate of silu."""
    norms = {name: RMSNorm(_scale(rng, HEAD_DIM)) for name in ("query_norm", "key_norm")}
    make = {"norm_first": True, "norm": "rms", "bias": False, "activation": "silu", "gated": True}
    layers = layers_with(rng, 3, causal=True, rotary=RotaryPositions(1e6), **norms, **make)
    return shaken(rng, Encoder(layers, RMSNorm(_scale(rng, D_MODEL))))


def gemma(rng):
    """Four norms, every other layer with a window and another base, capped scores."""
    make = NORMS["both"] | {"bias": False, "activation": "gelu_tanh", "gated": True, "scale": D_MODEL**-0.5}
    layers = []
    for i in range(4):
        rotary, window = (RotaryPositions(1e6), None) if i % 2 else (RotaryPositions(1e4), (4, 4))
        layers += layers_with(rng, 1, softcap=1.5, window=window, rotary=rotary, **make)
    return shaken(rng, Encoder(layers, RMSNorm(_scale(rng, D_MODEL))))


def t5(rng):
    """RMS norms before, scores that are not scaled, one relative bias for all layers."""
    make = {"norm_first": True, "norm": "rms", "bias": False, "activation": "relu", "num_kv_heads": HEADS}
    layers = [shaken(rng, one) for one in layers_with(rng, 3, scale=1.0, **make)]
    layers[2] = replace(layers[2], feed_forward_norm=None)
    stack = Encoder(layers, RMSNorm(_scale(rng, D_MODEL)), relative_bias=_bias(rng))
    return stack.replace(mapped(stack.weights(), lambda at, w: w / 3 if "query_weight" in at else w))


def jina(rng):
    """Norms after, ALiBi on both sides, all queries of a word normed together, and so its keys."""
    widths = {"query_norm": HEADS * HEAD_DIM, "key_norm": KV_HEADS * HEAD_DIM}
    norms = {name: LayerNorm(_scale(rng, n), np.zeros(n)) for name, n in widths.items()}
    layers = layers_with(rng, 2, alibi_slopes=(0.5, 0.25, 0.125, 0.0625), gated=True, **norms)
    return shaken(rng, Encoder(layers))


FAMILIES: dict[str, Maker] = {"modernbert": modernbert, "qwen": qwen, "gemma": gemma, "t5": t5, "jina": jina}
EVERY: dict[str, Maker] = FAMILIES | {
    f"{option}, norms {norms}": (lambda rng, option=option, norms=norms: with_option(rng, option, norms))
    for option in OPTIONS
    for norms in NORMS
}
