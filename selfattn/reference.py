"""The specification: what every function of selfattn computes, in plain NumPy.

Slow and obvious on purpose. There is one copy of each formula, here; the compiled kernels, the tests and the
benchmarks are measured against it. Everything computes in the dtype of its inputs (float16 and bfloat16 widen
to float32), so the same text is the naive float32 yardstick and, handed float64 arrays, the oracle. Only the
statistics of the norms and the error function are always float64: they are definitions, not yardsticks. The
positional encodings are plain NumPy to begin with: their one copy is `selfattn.positions`.

Sizes: `...` leading dimensions, H query heads, G key/value heads, Q queries, K keys, D head_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfattn.positions import alibi_slopes as alibi_slopes
from selfattn.positions import rotary_embedding as rotary_embedding
from selfattn.positions import sinusoidal_positions as sinusoidal_positions

if TYPE_CHECKING:
    from selfattn.layers import Encoder, EncoderLayer, FeedForward, MultiHeadSelfAttention, SelfAttentionCell

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Causal = bool | Literal["top_left", "bottom_right"]

# ---- the operator ----


def attention(
    query: Array,  # (..., H, Q, D)
    key: Array,  # (..., G, K, D), H a multiple of G: query head h reads key head h // (H / G)
    value: Array,  # (..., G, K, value_dim)
    *,
    sinks: Array | None = None,  # (H,) a logit that counts in the denominator only
    return_lse: bool = False,
    **masking: Any,  # as in masked_scores
) -> Any:
    """softmax(masked scores) * value, (..., H, Q, value_dim); with return_lse also the lse, (..., H, Q).

    A row with no key gives 0 and lse -inf (with sinks too). lse is natural and includes the sink. NaN in a
    masked key or value reaches nothing; in an attended one, the rows that attend to it and no other.
    """
    query, key, value = _one_dtype(query, key, value)
    leading = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    query = np.broadcast_to(query, leading + query.shape[-3:])
    scores = masked_scores(query, key, **masking)  # (..., H, Q, K)
    weights, lse = _softmax(scores, sinks)
    out = _weighted_sum(weights, _expand_heads(value, query.shape[-3]), scores != -np.inf)
    return (out, lse) if return_lse else out


def attention_weights(
    query: Array, key: Array, *, sinks: Array | None = None, rows: Any = None, **masking: Any
) -> Array:
    """How much each query attends to each key, (..., H, Q, K); `rows` keeps the queries of those indices."""
    query, key = _one_dtype(query, key)
    weights, _ = _softmax(masked_scores(query, key, **masking), sinks)
    return weights if rows is None else weights[..., np.asarray(rows, dtype=np.intp), :]


def masked_scores(
    query: Array,
    key: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    window: tuple[int | None, int | None] | None = None,
    kv_lengths: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
) -> Array:
    """What goes into the softmax, (..., H, Q, K); -inf is a masked key, whatever made it.

    mask          bool, broadcasts to (..., H, Q, K); True attends. All masks hold (AND).
    bias          float, broadcasts likewise, added; -inf masks like mask=False.
    causal        a query sees the keys up to its own position; True needs Q == K.
    window        (left, right): it sees position - left to position + right, ends included; None is open.
    kv_lengths    (batch,) or (): item b has keys 0 .. kv_lengths[b] - 1; batch is the first leading axis.
    scale         any finite number, by default 1/sqrt(D).
    softcap       c > 0 makes a score c * tanh(score / c).
    alibi_slopes  (H,): subtracts slope * |distance to the query's position|.

    The position of query i among the keys is i + (K - Q): the last query stands at the last of the K keys,
    however many of them kv_lengths leaves. Only causal="top_left" puts query i at key i.
    """
    num_heads, q_len, head_dim = query.shape[-3:]
    kv_len = key.shape[-2]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite")
    if mask is not None and np.asarray(mask).dtype != np.bool_:
        raise TypeError(f"mask must be bool (True attends), not {np.asarray(mask).dtype}; add floats as bias")
    distance = _key_distance(q_len, kv_len, causal)  # (Q, K)

    with np.errstate(invalid="ignore", over="ignore"):
        # 1. scores
        scores = query @ _expand_heads(key, num_heads).swapaxes(-1, -2)  # (..., H, Q, K)
        scores = scores * scores.dtype.type(scale)
        # 2. softcap
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        # 3. alibi
        if alibi_slopes is not None:
            slopes = np.asarray(alibi_slopes, dtype=scores.dtype).reshape(num_heads, 1, 1)
            scores = scores - slopes * np.abs(distance).astype(scores.dtype)
        # 4. bias
        if bias is not None:
            bias = np.broadcast_to(np.asarray(bias, dtype=scores.dtype), scores.shape)
            scores = np.where(bias == -np.inf, bias, scores + bias)

    # 5. masks
    attend = np.ones((q_len, kv_len), dtype=bool)
    if mask is not None:
        attend = attend & np.broadcast_to(mask, scores.shape)
    if causal:
        attend = attend & (distance <= 0)
    if window is not None:
        left, right = window
        attend = attend & (left is None or distance >= -left) & (right is None or distance <= right)
    if kv_lengths is not None:
        lengths = np.asarray(
            kv_lengths
        )  # (batch,) -> (batch, 1, ..., 1), one axis for each axis of the scores
        lengths = lengths.reshape(lengths.shape + (1,) * (scores.ndim - lengths.ndim))
        attend = attend & (np.arange(kv_len) < lengths)
    return np.where(attend, scores, scores.dtype.type(-np.inf))


def _key_distance(q_len: int, kv_len: int, causal: Causal) -> Array:
    """How far key j lies beyond the position of query i, (Q, K); negative for the keys before it."""
    if causal is True and q_len != kv_len:
        choice = 'say causal="top_left" or causal="bottom_right"'
        raise ValueError(f"causal=True with q_len={q_len} and kv_len={kv_len} is ambiguous: {choice}")
    if causal not in (False, True, "top_left", "bottom_right"):
        raise ValueError(f'causal={causal!r} must be False, True, "top_left" or "bottom_right"')
    first = 0 if causal == "top_left" else kv_len - q_len
    return np.arange(kv_len) - (first + np.arange(q_len))[:, None]


def _softmax(scores: Array, sinks: Array | None) -> tuple[Array, Array]:
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)  # (..., H, Q, 1)
    empty = top == -np.inf
    # 6. sinks
    sink = np.full((1, 1), -np.inf) if sinks is None else np.asarray(sinks).reshape(-1, 1, 1)  # (H, 1, 1)
    sink = sink.astype(scores.dtype)
    # 7. softmax
    with np.errstate(invalid="ignore", divide="ignore"):
        top = np.where(empty, 0, np.maximum(top, sink))
        exponentials = np.exp(scores - top)
        total = exponentials.sum(axis=-1, keepdims=True) + np.exp(sink - top)
        weights = np.where(empty | (scores == -np.inf), 0, exponentials / total)
        lse = np.where(empty, -np.inf, top + np.log(total))[..., 0]
    return weights.astype(scores.dtype), lse.astype(scores.dtype)


def _weighted_sum(weights: Array, value: Array, attend: Array) -> Array:
    # 8. values. 0 * NaN is NaN, so a masked value must not even be multiplied: the finite part of every value
    # goes through one product; a NaN or Inf is then added to the rows that attend to it and to no other.
    finite = np.isfinite(value)
    clean = np.where(finite, value, 0)  # (..., H, K, value_dim)
    with np.errstate(invalid="ignore"):
        out = weights @ clean  # (..., H, Q, value_dim)
        spoil = value - clean  # NaN, Inf or 0
        spoiled_keys = ~finite.all(axis=(*range(value.ndim - 2), value.ndim - 1))  # (K,)
        for j in np.flatnonzero(spoiled_keys):
            share = weights[..., j, None] * spoil[..., None, j, :]
            out = out + np.where(attend[..., j, None], share, 0)
    return out


def _one_dtype(*arrays: Array) -> list[Array]:
    dtype = np.result_type(*arrays, np.float32)
    return [np.asarray(array, dtype=dtype) for array in arrays]


def _expand_heads(array: Array, num_heads: int) -> Array:
    """(..., G, K, D) -> (..., H, K, D), each key/value head repeated for its group of query heads."""
    num_kv_heads = array.shape[-3]
    if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}")
    return np.repeat(array, num_heads // num_kv_heads, axis=-3)


# ---- the pieces of a layer ----


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x (..., d_in) * weight (d_in, d_out) + bias (d_out,)."""
    return x @ weight if bias is None else x @ weight + bias


def layer_norm(x: Array, weight: Array, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Mean 0, variance 1 (biased) on the last axis, then * weight + bias; float64 inside, x.dtype outside."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    out: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight
    return (out if bias is None else out + bias).astype(x.dtype)


def rms_norm(x: Array, weight: Array, *, eps: float = 1e-6) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; float64 inside, x.dtype outside."""
    wide = x.astype(np.float64)
    out: Array = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * weight
    return out.astype(x.dtype)


def gelu(x: Array) -> Array:
    """x * Phi(x), Phi from the complementary error function (float64 inside)."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    out: Array = 0.5 * x * erfc(x.astype(np.float64) / -math.sqrt(2))
    return out.astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of gelu."""
    out: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return out


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN."""
    out: Array = np.maximum(x, 0)
    return out


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    with np.errstate(over="ignore"):
        out: Array = x / (1 + np.exp(-x))
    return out


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu, "silu": silu}


# ---- the cell, cells side by side, layers in depth ----


def self_attention_cell(
    x: Array,  # (..., seq_len, d_model)
    cell: SelfAttentionCell,
    *,
    lengths: Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    """Each word with its context, (..., seq_len, value_dim): one head over one set of three matrices."""
    query = linear(x, cell.query_weight, cell.query_bias)
    key = linear(x, cell.key_weight, cell.key_bias)
    value = linear(x, cell.value_weight, cell.value_bias)
    one_head = [array[..., None, :, :] for array in (query, key, value)]
    out: Array = attention(*one_head, causal=causal, kv_lengths=lengths, scale=scale)
    return out[..., 0, :, :]


def self_attention(x: Array, heads: MultiHeadSelfAttention, *, lengths: Array | None = None) -> Array:
    """Cells side by side over the same words, their values joined and mixed by the output matrix."""
    how: Any = {"lengths": lengths, "causal": heads.causal, "scale": heads.scale}
    joined = np.concatenate([self_attention_cell(x, cell, **how) for cell in heads.cells], axis=-1)
    return joined if heads.output_weight is None else linear(joined, heads.output_weight, heads.output_bias)


def feed_forward(x: Array, layer: FeedForward) -> Array:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when the layer has a gate."""
    act = ACTIVATIONS[layer.activation]
    up = linear(x, layer.up_weight, layer.up_bias)
    hidden = act(up) if layer.gate_weight is None else act(linear(x, layer.gate_weight, layer.gate_bias)) * up
    return linear(hidden, layer.down_weight, layer.down_bias)


def norm(x: Array, layer: Any) -> Array:
    """layer_norm for a LayerNorm, rms_norm for an RMSNorm."""
    if layer.kind == "layer":
        return layer_norm(x, layer.weight, layer.bias, eps=layer.eps)
    return rms_norm(x, layer.weight, eps=layer.eps)


def encoder_layer(x: Array, layer: EncoderLayer, *, lengths: Array | None = None) -> Array:
    """One layer, (..., seq_len, d_model) to the same."""
    if layer.norm_first:
        x = x + self_attention(norm(x, layer.attention_norm), layer.attention, lengths=lengths)
        return x + feed_forward(norm(x, layer.feed_forward_norm), layer.feed_forward)
    x = norm(x + self_attention(x, layer.attention, lengths=lengths), layer.attention_norm)
    return norm(x + feed_forward(x, layer.feed_forward), layer.feed_forward_norm)


def encoder(x: Array, stack: Encoder, *, lengths: Array | None = None) -> Array:
    """The layers in depth; rows beyond `lengths` (batch,) are 0."""
    for layer in stack.layers:
        x = encoder_layer(x, layer, lengths=lengths)
    if stack.final_norm is not None:
        x = norm(x, stack.final_norm)
    if lengths is None:
        return x
    real = np.arange(x.shape[-2]) < np.asarray(lengths)[:, None]  # (batch, seq_len)
    return np.where(real[..., None], x, 0)
