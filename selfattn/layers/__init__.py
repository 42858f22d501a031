"""The road from a word to its context: a cell, cells side by side, layers in depth.

cell.py          SelfAttentionCell: three matrices, one head
multihead.py     MultiHeadSelfAttention: cells side by side
norm.py          LayerNorm, RMSNorm
feed_forward.py  FeedForward
encoder_layer.py EncoderLayer
encoder.py       Encoder: layers in depth
gradients.py     forwards that keep what their backwards need: the chain rule
embedding.py     the gradients of embedding tables and of rotary positions
weights.py       an encoder as one safetensors file
ragged.py        batches without padding
heads.py         what a cell and cells side by side have in common
base.py          what a weight is
"""

from selfattn.layers.cell import SelfAttentionCell
from selfattn.layers.encoder import Encoder
from selfattn.layers.encoder_layer import EncoderLayer
from selfattn.layers.feed_forward import FeedForward
from selfattn.layers.multihead import MultiHeadSelfAttention
from selfattn.layers.norm import LayerNorm, RMSNorm

__all__ = [
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "LayerNorm",
    "MultiHeadSelfAttention",
    "RMSNorm",
    "SelfAttentionCell",
]
