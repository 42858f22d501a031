# SPDX-License-Identifier: Apache-2.0
"""The specification: what every function of selfattn computes, in plain NumPy.

Slow and obvious on purpose. There is one copy of each formula, here; the compiled kernels, the tests and the
benchmarks are measured against it. Everything computes in the dtype of its inputs (float16 and bfloat16 widen
to float32), so the same text is the naive float32 yardstick and, handed float64 arrays, the oracle. Only the
statistics of the norms and the error function are always float64: they are definitions, not yardsticks. What
is plain NumPy to begin with has its one copy elsewhere: the positional encodings, `layers/positions.py`, and
merge_attention, `attention/merge.py`.

attention.py           attention, its weights and column sums, packed sequences, pages
attention_backward.py  the gradients of attention
dropout.py             the random numbers of dropout
layers.py              the pieces of a layer, their gradients, the cell, cells side by side, layers in depth
"""

from selfattn.attention.arrays import Array as Array
from selfattn.attention.merge import merge_attention as merge_attention
from selfattn.attention.options import Causal as Causal
from selfattn.layers.positions import alibi_slopes as alibi_slopes
from selfattn.layers.positions import rotary_embedding as rotary_embedding
from selfattn.layers.positions import sinusoidal_positions as sinusoidal_positions

# Two functions have the name of the module that they come from: here the name means the function.
from selfattn.reference.attention import attention as attention
from selfattn.reference.attention import attention_column_sums as attention_column_sums
from selfattn.reference.attention import attention_weights as attention_weights
from selfattn.reference.attention import masked_scores as masked_scores
from selfattn.reference.attention import paged_attention as paged_attention
from selfattn.reference.attention import varlen_attention as varlen_attention
from selfattn.reference.attention_backward import attention_backward as attention_backward
from selfattn.reference.attention_backward import varlen_attention_backward as varlen_attention_backward
from selfattn.reference.dropout import dropout_factors as dropout_factors
from selfattn.reference.layers import ACTIVATIONS as ACTIVATIONS
from selfattn.reference.layers import encoder as encoder
from selfattn.reference.layers import encoder_layer as encoder_layer
from selfattn.reference.layers import feed_forward as feed_forward
from selfattn.reference.layers import gelu as gelu
from selfattn.reference.layers import gelu_tanh as gelu_tanh
from selfattn.reference.layers import layer_norm as layer_norm
from selfattn.reference.layers import linear as linear
from selfattn.reference.layers import norm as norm
from selfattn.reference.layers import relative_bias as relative_bias
from selfattn.reference.layers import relative_buckets as relative_buckets
from selfattn.reference.layers import relu as relu
from selfattn.reference.layers import rms_norm as rms_norm
from selfattn.reference.layers import rotary as rotary
from selfattn.reference.layers import self_attention as self_attention
from selfattn.reference.layers import self_attention_cell as self_attention_cell
from selfattn.reference.layers import self_attention_weights as self_attention_weights
from selfattn.reference.layers import silu as silu
