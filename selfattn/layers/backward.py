"""The chain rule through the layers: for each a forward that keeps what its backward needs, and the backward.

Everything here runs on packed rows, (tokens, width). The forwards do the arithmetic of the compiled stack in
its order (a residual is added after the bias), so they give its bits. grad_y is the gradient of a loss with
respect to the result y; a backward gives grad_x and the gradients of the weights, by the weights' names. What
is read twice, as at a residual connection, gets the sum of what comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn import functional
from selfattn.attention.backward import packed_gradients
from selfattn.attention.options import AttentionOptions
from selfattn.attention.packed import Sequences, attend, sequences_of
from selfattn.layers.base import Array, Layer, Weights
from selfattn.layers.projections import ROLES, Projections

if TYPE_CHECKING:
    from selfattn.layers.encoder import Encoder
    from selfattn.layers.encoder_layer import EncoderLayer
    from selfattn.layers.feed_forward import FeedForward
    from selfattn.layers.multihead import MultiHeadSelfAttention
    from selfattn.layers.norm import BaseNorm

# ---- matrices and norms ----


def linear(layer: Layer, role: str, x: Array, threads: int) -> Array:
    """x (..., d_in) * the layer's {role}_weight (d_in, d_out) + its {role}_bias."""
    matrix, offset = getattr(layer, f"{role}_weight"), getattr(layer, f"{role}_bias")
    return functional.linear(x, matrix, offset, num_threads=threads)


def linear_backward(layer: Layer, grads_y: dict[str, Array], x: Array, threads: int) -> tuple[Array, Weights]:
    """Back through all the matrices that x met; grads_y: role -> gradient of what that matrix made of x."""
    parts: list[Array] = []
    grads: Weights = {}
    for role, grad_y in grads_y.items():
        matrix, offset = getattr(layer, f"{role}_weight"), getattr(layer, f"{role}_bias")
        part, grads[f"{role}_weight"], grads[f"{role}_bias"] = functional.linear_backward(
            grad_y, x, matrix, bias=offset is not None, num_threads=threads
        )
        parts.append(part)
    grad_x, *others = parts
    for part in others:
        grad_x += part
    return grad_x, grads


def norm_forward(layer: BaseNorm, x: Array, threads: int) -> tuple[Array, Array]:
    """(y, x): the statistics of a row are cheaper computed again than kept."""
    return layer._normed(x, threads), x


def norm_backward(layer: BaseNorm, x: Array, grad_y: Array, threads: int) -> tuple[Array, Weights]:
    how: Any = {"eps": layer.eps, "num_threads": threads}
    if layer.kind == "rms":
        grad_x, grad_weight = functional.rms_norm_backward(grad_y, x, layer.weight, **how)
        return grad_x, {"weight": grad_weight}
    grad_x, grad_weight, grad_bias = functional.layer_norm_backward(grad_y, x, layer.weight, **how)
    return grad_x, _of(layer, {"weight": grad_weight, "bias": grad_bias})


# ---- attention ----


@dataclass(frozen=True, slots=True, eq=False)
class SavedHeads:
    """x (tokens, d_model); the rest (tokens, heads, dim), but lse (num_heads, tokens)."""

    x: Array
    query: Array
    key: Array
    value: Array
    context: Array
    lse: Array
    sequences: Sequences
    options: AttentionOptions


def heads_forward(
    layer: Projections, x: Array, cu_seqlens: Array, options: AttentionOptions, threads: int
) -> tuple[Array, SavedHeads]:
    """What the heads say of every word, side by side, (tokens, num_heads * value_dim): a view of saved."""
    query, key, value = layer._project(x, threads)
    context = np.empty((*query.shape[:2], value.shape[2]), query.dtype)
    sequences = sequences_of(query, key, value, cu_seqlens, cu_seqlens)
    lse = np.empty(query.shape[1::-1], query.dtype)
    attend(query, key, value, sequences, options, context, lse, threads)
    return _side_by_side(context), SavedHeads(x, query, key, value, context, lse, sequences, options)


def heads_backward(
    layer: Projections, saved: SavedHeads, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    s = saved
    arrays = grad_y.reshape(s.context.shape), s.query, s.key, s.value, s.context
    grads_qkv = packed_gradients(arrays, s.lse, s.sequences, s.options, ROLES, threads)
    grads_y = {role: _side_by_side(grad) for role, grad in zip(ROLES, grads_qkv, strict=True)}
    grad_x, grads = linear_backward(layer, grads_y, s.x, threads)
    return grad_x, _of(layer, grads)


def attention_forward(
    layer: MultiHeadSelfAttention, x: Array, cu_seqlens: Array, threads: int
) -> tuple[Array, SavedHeads]:
    """y = heads(x) W_output + b."""
    options = layer._options(layer.causal, layer.scale)
    joined, saved = heads_forward(layer, x, cu_seqlens, options, threads)
    y = joined.copy() if layer.output_weight is None else linear(layer, "output", joined, threads)
    return y, saved


def attention_backward(
    layer: MultiHeadSelfAttention, saved: SavedHeads, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    grad_joined, of_output = grad_y, Weights()
    if layer.output_weight is not None:
        joined = _side_by_side(saved.context)
        grad_joined, of_output = linear_backward(layer, {"output": grad_y}, joined, threads)
    grad_x, of_heads = heads_backward(layer, saved, grad_joined, threads)
    return grad_x, _of(layer, of_heads | of_output)


# ---- feed-forward ----


@dataclass(frozen=True, slots=True, eq=False)
class SavedFeedForward:
    """x (..., d_model); up and gate (..., d_ff) before the activation, hidden (..., d_ff) after it."""

    x: Array
    up: Array
    gate: Array | None
    hidden: Array


def feed_forward_forward(layer: FeedForward, x: Array, threads: int) -> tuple[Array, SavedFeedForward]:
    """y = act(x W_up + b) W_down + b, or with a gate (act(x W_gate + b) * (x W_up + b)) W_down + b."""
    activation = getattr(functional, layer.activation)
    up, gate = linear(layer, "up", x, threads), None
    if layer.gate_weight is None:
        hidden = activation(up, num_threads=threads)
    else:
        gate = linear(layer, "gate", x, threads)
        hidden = activation(gate, num_threads=threads)
        hidden *= up
    return linear(layer, "down", hidden, threads), SavedFeedForward(x, up, gate, hidden)


def feed_forward_backward(
    layer: FeedForward, saved: SavedFeedForward, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    s = saved
    grad_hidden, of_down = linear_backward(layer, {"down": grad_y}, s.hidden, threads)
    if s.gate is None:
        activation_backward = getattr(functional, f"{layer.activation}_backward")
        grads_y = {"up": activation_backward(grad_hidden, s.up, num_threads=threads)}
    else:
        grad_gate, grad_up = functional.gate_backward(
            grad_hidden, s.gate, s.up, layer.activation, num_threads=threads
        )
        grads_y = {"gate": grad_gate, "up": grad_up}
    grad_x, of_up = linear_backward(layer, grads_y, s.x, threads)
    return grad_x, _of(layer, of_up | of_down)


# ---- layers in depth ----


@dataclass(frozen=True, slots=True, eq=False)
class SavedLayer:
    """What each of the four parts keeps."""

    attention: SavedHeads
    attention_norm: Array
    feed_forward: SavedFeedForward
    feed_forward_norm: Array


def encoder_layer_forward(
    layer: EncoderLayer, x: Array, cu_seqlens: Array, threads: int
) -> tuple[Array, SavedLayer]:
    """norm_first:  h = x + attention(norm1(x));   y = h + feed_forward(norm2(h))
    otherwise:      h = norm1(x + attention(x));   y = norm2(h + feed_forward(h))
    """
    if layer.norm_first:
        normed, norm1 = norm_forward(layer.attention_norm, x, threads)
        attended, attention = attention_forward(layer.attention, normed, cu_seqlens, threads)
        h = x + attended
        normed, norm2 = norm_forward(layer.feed_forward_norm, h, threads)
        fed, feed_forward = feed_forward_forward(layer.feed_forward, normed, threads)
        y = h + fed
    else:
        attended, attention = attention_forward(layer.attention, x, cu_seqlens, threads)
        h, norm1 = norm_forward(layer.attention_norm, x + attended, threads)
        fed, feed_forward = feed_forward_forward(layer.feed_forward, h, threads)
        y, norm2 = norm_forward(layer.feed_forward_norm, h + fed, threads)
    return y, SavedLayer(attention, norm1, feed_forward, norm2)


def encoder_layer_backward(
    layer: EncoderLayer, saved: SavedLayer, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    def attention(grad: Array) -> tuple[Array, Weights]:
        return attention_backward(layer.attention, saved.attention, grad, threads)

    def norm1(grad: Array) -> tuple[Array, Weights]:
        return norm_backward(layer.attention_norm, saved.attention_norm, grad, threads)

    def feed_forward(grad: Array) -> tuple[Array, Weights]:
        return feed_forward_backward(layer.feed_forward, saved.feed_forward, grad, threads)

    def norm2(grad: Array) -> tuple[Array, Weights]:
        return norm_backward(layer.feed_forward_norm, saved.feed_forward_norm, grad, threads)

    if layer.norm_first:
        grad_normed, of_feed_forward = feed_forward(grad_y)
        grad_h, of_norm2 = norm2(grad_normed)
        grad_h += grad_y
        grad_normed, of_attention = attention(grad_h)
        grad_x, of_norm1 = norm1(grad_normed)
        grad_x += grad_h
    else:
        grad_sum, of_norm2 = norm2(grad_y)
        grad_h, of_feed_forward = feed_forward(grad_sum)
        grad_h += grad_sum
        grad_sum, of_norm1 = norm1(grad_h)
        grad_x, of_attention = attention(grad_sum)
        grad_x += grad_sum
    grads = {
        "attention": of_attention,
        "attention_norm": of_norm1,
        "feed_forward": of_feed_forward,
        "feed_forward_norm": of_norm2,
    }
    return grad_x, grads


@dataclass(frozen=True, slots=True, eq=False)
class SavedEncoder:
    """For each layer what it keeps or, to be computed again, its input alone."""

    layers: list[SavedLayer | Array]
    final_norm: Any  # its input, or None without one
    cu_seqlens: Array


def encoder_forward(
    stack: Encoder, x: Array, cu_seqlens: Array, recompute: bool, threads: int
) -> tuple[Array, SavedEncoder]:
    """One layer after the other, then the final norm."""
    kept: list[SavedLayer | Array] = []
    for layer in stack.layers:
        y, saved = encoder_layer_forward(layer, x, cu_seqlens, threads)
        kept.append(x if recompute else saved)
        x = y
    if stack.final_norm is None:
        return x, SavedEncoder(kept, None, cu_seqlens)
    y, final_norm = norm_forward(stack.final_norm, x, threads)
    return y, SavedEncoder(kept, final_norm, cu_seqlens)


def encoder_backward(
    stack: Encoder, saved: SavedEncoder, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    grad, of_norm = grad_y, Weights()
    if stack.final_norm is not None:
        grad, of_norm["final_norm"] = norm_backward(stack.final_norm, saved.final_norm, grad, threads)
    of_layers: list[Weights] = []
    for layer, kept in zip(reversed(stack.layers), reversed(saved.layers), strict=True):
        if not isinstance(kept, SavedLayer):
            _, kept = encoder_layer_forward(layer, kept, saved.cu_seqlens, threads)
        grad, of_layer = encoder_layer_backward(layer, kept, grad, threads)
        of_layers.append(of_layer)
    return grad, {"layers": of_layers[::-1]} | of_norm


def _side_by_side(array: Array) -> Array:
    """(tokens, heads, dim) -> (tokens, heads * dim)."""
    tokens, heads, dim = array.shape
    return array.reshape(tokens, heads * dim)


def _of(layer: Layer, grads: Weights) -> Weights:
    """The gradients of the weights that the layer has, in their order."""
    return {name: grads[name] for name in layer.weights() if name in grads}
