# SPDX-License-Identifier: Apache-2.0
"""The road from a word to its context: a cell, cells side by side, layers in depth.

cell.py          SelfAttentionCell: three matrices, one head
multihead.py     MultiHeadSelfAttention: cells side by side
norm.py          LayerNorm, RMSNorm
feed_forward.py  FeedForward
rotary.py        RotaryPositions: the angles that queries and keys turn by
relative_bias.py RelativeBias: numbers by bucketed distance, added to the scores
encoder_layer.py EncoderLayer
encoder.py       Encoder: layers in depth
backward.py      forwards that keep what their backwards need: the chain rule
embedding.py     the gradients of embedding tables and of rotary positions
serialization.py an encoder as one safetensors file
packed_batch.py  batches without padding
packing.py       a layer as the compiled loop takes it
projections.py   the query, key and value matrices that a cell and cells side by side have
positions.py     positions in the vectors, in queries and keys, in the scores
base.py          what a weight is
"""

from selfattn.layers.cell import SelfAttentionCell
from selfattn.layers.encoder import Encoder
from selfattn.layers.encoder_layer import EncoderLayer
from selfattn.layers.feed_forward import FeedForward
from selfattn.layers.multihead import MultiHeadSelfAttention
from selfattn.layers.norm import LayerNorm, RMSNorm
from selfattn.layers.relative_bias import RelativeBias
from selfattn.layers.rotary import RotaryPositions

__all__ = [
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "LayerNorm",
    "MultiHeadSelfAttention",
    "RMSNorm",
    "RelativeBias",
    "RotaryPositions",
    "SelfAttentionCell",
]
