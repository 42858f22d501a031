# SPDX-License-Identifier: Apache-2.0
"""The specification of the layers, in plain NumPy: their pieces, their gradients, layers in depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn.attention.arrays import Array
from selfattn.reference.attention import attention, attention_weights

if TYPE_CHECKING:
    from selfattn.layers import (
        Encoder,
        EncoderLayer,
        FeedForward,
        MultiHeadSelfAttention,
        RelativeBias,
        RotaryPositions,
        SelfAttentionCell,
    )


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


# ---- the way back: from the gradient of the result to those of the arguments ----


def linear_backward(grad_y: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Of x, weight and bias, for grad_y (..., d_out)."""
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    return grad_y @ weight.T, rows.T @ grad_rows, column_sums(grad_y)


def column_sums(x: Array) -> Array:
    """The sum over all axes but the last, (..., width) -> (width,)."""
    out: Array = x.sum(axis=tuple(range(x.ndim - 1)))
    return out


def layer_norm_backward(
    grad_y: Array, x: Array, weight: Array, *, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Of x, weight and bias; float64 inside."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    grad_x, grad_weight = _unscaled(grad_y, centred, weight, eps)
    grad_x = grad_x - grad_x.mean(axis=-1, keepdims=True)
    grad_bias = column_sums(grad_y.astype(np.float64))
    return grad_x.astype(x.dtype), grad_weight.astype(weight.dtype), grad_bias.astype(weight.dtype)


def rms_norm_backward(grad_y: Array, x: Array, weight: Array, *, eps: float = 1e-6) -> tuple[Array, Array]:
    """Of x and weight; float64 inside."""
    grad_x, grad_weight = _unscaled(grad_y, x.astype(np.float64), weight, eps)
    return grad_x.astype(x.dtype), grad_weight.astype(weight.dtype)


def _unscaled(grad_y: Array, x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """The gradients of x and weight in y = normed * weight, normed = x / sqrt(mean(x^2) + eps)."""
    deviation = np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    normed, grad_normed = x / deviation, grad_y.astype(np.float64) * weight
    grad_x = (grad_normed - normed * (grad_normed * normed).mean(axis=-1, keepdims=True)) / deviation
    return grad_x, column_sums(grad_y * normed)


def gelu_backward(grad_y: Array, x: Array) -> Array:
    """grad_y * (Phi(x) + x phi(x)), phi the derivative of Phi (float64 inside)."""
    wide = x.astype(np.float64)
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    slope = 0.5 * erfc(wide / -math.sqrt(2)) + wide * np.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    out: Array = grad_y * slope
    return out.astype(x.dtype)


def gelu_tanh_backward(grad_y: Array, x: Array) -> Array:
    """Of the tanh approximation."""
    root = math.sqrt(2 / math.pi)
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    inner = root * (1 + 3 * 0.044715 * x**2)
    out: Array = grad_y * 0.5 * (1 + tanh + x * (1 - tanh**2) * inner)
    return out


def relu_backward(grad_y: Array, x: Array) -> Array:
    """grad_y where x > 0, at 0 and below nothing; NaN for a NaN of either."""
    out: Array = grad_y * np.where(np.isnan(x), x, x > 0).astype(x.dtype)
    return out


def silu_backward(grad_y: Array, x: Array) -> Array:
    """With s = sigmoid(x): grad_y * s (1 + x (1 - s))."""
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    out: Array = grad_y * sigmoid * (1 + x * (1 - sigmoid))
    return out


ACTIVATIONS_BACKWARD = {
    "gelu": gelu_backward,
    "gelu_tanh": gelu_tanh_backward,
    "relu": relu_backward,
    "silu": silu_backward,
}


def gate_backward(grad_y: Array, gate: Array, up: Array, activation: str) -> tuple[Array, Array]:
    """Of gate and up, for y = act(gate) * up."""
    return ACTIVATIONS_BACKWARD[activation](grad_y * up, gate), grad_y * ACTIVATIONS[activation](gate)


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


def rotary(x: Array, positions: RotaryPositions) -> Array:
    """x (..., heads, seq_len, head_dim), each word turned to its place in the sequence."""
    turning = x.shape[-1] if positions.rotary_dim is None else positions.rotary_dim
    pairs = turning // 2
    if positions.frequencies is None:
        frequencies = positions.base ** (-np.arange(pairs) / pairs)
    else:
        frequencies = np.asarray(positions.frequencies)
    angle = np.arange(x.shape[-2])[:, None] * frequencies  # (seq_len, pairs)
    cosine = (np.cos(angle) * positions.factor).astype(x.dtype)
    sine = (np.sin(angle) * positions.factor).astype(x.dtype)
    halves = slice(0, pairs), slice(pairs, turning)
    first, second = (slice(0, turning, 2), slice(1, turning, 2)) if positions.interleaved else halves
    out = x.copy()
    out[..., first] = x[..., first] * cosine - x[..., second] * sine
    out[..., second] = x[..., first] * sine + x[..., second] * cosine
    return out


def relative_buckets(distance: Array, num_buckets: int, max_distance: int, bidirectional: bool) -> Array:
    """The bucket of each distance of a key after its query, as T5 has them; logarithms in float32."""
    after = distance > 0
    if bidirectional:
        half, far = num_buckets // 2, np.abs(distance)
        first = np.where(after, half, 0)
    else:
        half, far, first = num_buckets, np.where(after, 0, -distance), np.zeros_like(distance)
    single = half // 2
    ratio = np.maximum(far, 1).astype(np.float32) / np.float32(single)
    growth = np.log(ratio) / np.float32(math.log(max_distance / single)) * np.float32(half - single)
    large = np.minimum(single + growth.astype(np.int64), half - 1)
    out: Array = first + np.where(far < single, far, large)
    return out


def relative_bias(bias: RelativeBias, seq_len: int) -> Array:
    """(num_heads, seq_len, seq_len), to be added to the scores: the whole of what the kernels never make."""
    place = np.arange(seq_len)
    distance = place - place[:, None]
    bucket = relative_buckets(distance, len(bias.table), bias.max_distance, bias.bidirectional)
    return np.moveaxis(bias.table[bucket], -1, 0)


def heads_of(x: Array, heads: MultiHeadSelfAttention) -> tuple[Array, Array, Array]:
    """Queries, keys and values as attention takes them, (..., heads, seq_len, dim): normed, then turned."""
    projected = []
    counts = {"query": heads.num_heads, "key": heads.num_kv_heads, "value": heads.num_kv_heads}
    for role, count in counts.items():
        rows = linear(x, getattr(heads, f"{role}_weight"), getattr(heads, f"{role}_bias"))
        each_head = rows.reshape(*rows.shape[:-1], count, rows.shape[-1] // count)
        over = None if role == "value" else getattr(heads, f"{role}_norm")
        if over is not None:  # as wide as a head, or as all of them together
            each_head = norm(rows if len(over.weight) == rows.shape[-1] else each_head, over)
            each_head = each_head.reshape(*rows.shape[:-1], count, rows.shape[-1] // count)
        each_head = each_head.swapaxes(-2, -3)
        if heads.rotary is not None and role != "value":
            each_head = rotary(each_head, heads.rotary)
        projected.append(each_head)
    query, key, value = projected
    return query, key, value


def attention_options(heads: MultiHeadSelfAttention, seq_len: int, shared: RelativeBias | None) -> Any:
    """What the operator is told; `shared` is the encoder's relative bias, for heads without their own."""
    names = ("causal", "scale", "window", "softcap", "alibi_slopes", "sinks")
    options: dict[str, Any] = {name: getattr(heads, name) for name in names}
    added = shared if heads.relative_bias is None else heads.relative_bias
    return options | {"bias": None if added is None else relative_bias(added, seq_len)}


def self_attention(
    x: Array,  # (..., seq_len, d_model)
    heads: MultiHeadSelfAttention,
    *,
    lengths: Array | None = None,
    shared_bias: RelativeBias | None = None,
) -> Array:
    """Heads over the same words, their values joined and mixed, (..., seq_len, d_out)."""
    options = attention_options(heads, x.shape[-2], shared_bias)
    values: Array = attention(*heads_of(x, heads), kv_lengths=lengths, **options)
    values = values.swapaxes(-2, -3)  # (..., seq_len, num_heads, value_dim)
    joined = values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])
    return joined if heads.output_weight is None else linear(joined, heads.output_weight, heads.output_bias)


def self_attention_weights(
    x: Array,
    heads: MultiHeadSelfAttention,
    *,
    lengths: Array | None = None,
    shared_bias: RelativeBias | None = None,
) -> Array:
    """How much each word attends to each other, (..., num_heads, seq_len, seq_len); 0 in the padding."""
    query, key, _ = heads_of(x, heads)
    options = attention_options(heads, x.shape[-2], shared_bias)
    weights = attention_weights(query, key, kv_lengths=lengths, **options)
    if lengths is None:
        return weights
    real = np.arange(x.shape[-2]) < np.asarray(lengths)[:, None]  # (batch, seq_len)
    return np.where(real[:, None, :, None], weights, 0)


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


def maybe_norm(x: Array, layer: Any) -> Array:
    """x itself where a layer has no norm."""
    return x if layer is None else norm(x, layer)


def encoder_layer(
    x: Array, layer: EncoderLayer, *, lengths: Array | None = None, shared_bias: RelativeBias | None = None
) -> Array:
    """One layer, (..., seq_len, d_model) to the same."""

    def attended(x: Array) -> Array:
        return self_attention(x, layer.attention, lengths=lengths, shared_bias=shared_bias)

    def fed(x: Array) -> Array:
        return feed_forward(x, layer.feed_forward)

    if layer.norm_first:
        x = x + maybe_norm(attended(maybe_norm(x, layer.attention_norm)), layer.attention_post_norm)
        return x + maybe_norm(fed(maybe_norm(x, layer.feed_forward_norm)), layer.feed_forward_post_norm)
    x = norm(x + attended(x), layer.attention_norm)
    return norm(x + fed(x), layer.feed_forward_norm)


def encoder(x: Array, stack: Encoder, *, lengths: Array | None = None) -> Array:
    """The layers in depth; rows beyond `lengths` (batch,) are 0."""
    for layer in stack.layers:
        x = encoder_layer(x, layer, lengths=lengths, shared_bias=stack.relative_bias)
    if stack.final_norm is not None:
        x = norm(x, stack.final_norm)
    if lengths is None:
        return x
    real = np.arange(x.shape[-2]) < np.asarray(lengths)[:, None]  # (batch, seq_len)
    return np.where(real[..., None], x, 0)
