# SPDX-License-Identifier: Apache-2.0
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
from selfattn.layers.packed_batch import positions_of
from selfattn.layers.projections import ROLES, Projections

if TYPE_CHECKING:
    from selfattn.layers.encoder import Encoder
    from selfattn.layers.encoder_layer import EncoderLayer
    from selfattn.layers.feed_forward import FeedForward
    from selfattn.layers.multihead import MultiHeadSelfAttention
    from selfattn.layers.norm import BaseNorm, Norm

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
    saved = _attended(x, query, key, value, cu_seqlens, options, threads)
    return _side_by_side(saved.context), saved


def _attended(
    x: Array,
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens: Array,
    options: AttentionOptions,
    threads: int,
) -> SavedHeads:
    context = np.empty((*query.shape[:2], value.shape[2]), query.dtype)
    sequences = sequences_of(query, key, value, cu_seqlens, cu_seqlens)
    lse = np.empty(query.shape[1::-1], query.dtype)
    attend(query, key, value, sequences, options, context, lse, threads)
    return SavedHeads(x, query, key, value, context, lse, sequences, options)


def heads_backward(
    layer: Projections, saved: SavedHeads, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    grads_y = _through_attention(saved, grad_y, ROLES, threads)
    grad_x, grads = _through_projections(layer, saved.x, grads_y, threads)
    return grad_x, _of(layer, grads)


def _through_attention(
    saved: SavedHeads, grad_y: Array, need: tuple[str, ...], threads: int
) -> dict[str, Array]:
    """The gradients of what attention was given, by name."""
    s = saved
    arrays = grad_y.reshape(s.context.shape), s.query, s.key, s.value, s.context
    return dict(
        zip(need, packed_gradients(arrays, s.lse, s.sequences, s.options, need, threads), strict=True)
    )


def _through_projections(
    layer: Projections, x: Array, grads_y: dict[str, Array], threads: int
) -> tuple[Array, Weights]:
    return linear_backward(layer, {role: _side_by_side(grads_y[role]) for role in ROLES}, x, threads)


@dataclass(frozen=True, slots=True, eq=False)
class SavedAttention:
    """query and key (tokens, heads, head_dim) before their norms, where they have any."""

    heads: SavedHeads
    query: Array | None
    key: Array | None


def attention_forward(
    layer: MultiHeadSelfAttention, x: Array, cu_seqlens: Array, threads: int
) -> tuple[Array, SavedAttention]:
    """y = heads(x) W_output + b."""
    projected_query, projected_key, value = layer._project(x, threads)
    query, key = layer._placed(projected_query, projected_key, cu_seqlens, threads)
    heads = _attended(x, query, key, value, cu_seqlens, layer._options, threads)
    joined = _side_by_side(heads.context)
    y = joined.copy() if layer.output_weight is None else linear(layer, "output", joined, threads)
    before = projected_query if layer.query_norm else None, projected_key if layer.key_norm else None
    return y, SavedAttention(heads, *before)


def attention_backward(
    layer: MultiHeadSelfAttention, saved: SavedAttention, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    grad_joined, grads, heads = grad_y, Weights(), saved.heads
    if layer.output_weight is not None:
        joined = _side_by_side(heads.context)
        grad_joined, grads = linear_backward(layer, {"output": grad_y}, joined, threads)
    beside = [name for name in ("sinks", "relative_bias") if getattr(layer, name) is not None]
    grads_y = _through_attention(heads, grad_joined, (*ROLES, *beside), threads)
    for role, norm, x in (("query", layer.query_norm, saved.query), ("key", layer.key_norm, saved.key)):
        if layer.rotary is not None:
            positions = positions_of(heads.sequences.cu_seqlens_q)
            grads_y[role] = layer.rotary.turn_back(grads_y[role], positions)
        if norm is not None and x is not None:
            grads_y[role], grads[f"{role}_norm"] = _heads_norm_backward(norm, x, grads_y[role], threads)
    grad_x, of_projections = _through_projections(layer, heads.x, grads_y, threads)
    grads |= of_projections
    if layer.sinks is not None:
        grads["sinks"] = grads_y["sinks"]
    if layer.relative_bias is not None:
        grads["relative_bias"] = layer.relative_bias.backward(grads_y["relative_bias"])
    return grad_x, _of(layer, grads)


def _heads_norm_backward(norm: Norm, x: Array, grad_y: Array, threads: int) -> tuple[Array, Weights]:
    """Of x (tokens, heads, head_dim), whose heads the norm took one by one or all of a word."""
    width = len(norm.weight)
    grad_x, grads = norm_backward(norm, x.reshape(-1, width), grad_y.reshape(-1, width), threads)
    return grad_x.reshape(x.shape), grads


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
    """What each part keeps; of a norm that the layer does not have, None."""

    attention: SavedAttention
    attention_norm: Array | None
    attention_post_norm: Array | None
    feed_forward: SavedFeedForward
    feed_forward_norm: Array | None
    feed_forward_post_norm: Array | None


def _maybe_norm(layer: BaseNorm | None, x: Array, threads: int) -> tuple[Array, Array | None]:
    """norm(x), and x; without a norm x itself, and nothing to keep."""
    return (x, None) if layer is None else norm_forward(layer, x, threads)


def encoder_layer_forward(
    layer: EncoderLayer, x: Array, cu_seqlens: Array, threads: int
) -> tuple[Array, SavedLayer]:
    """norm_first:  h = x + post1(attention(norm1(x)));  y = h + post2(feed_forward(norm2(h)))
    otherwise:      h = norm1(x + attention(x));         y = norm2(h + feed_forward(h))
    """
    post1 = post2 = None
    if layer.norm_first:
        normed, norm1 = _maybe_norm(layer.attention_norm, x, threads)
        attended, attention = attention_forward(layer.attention, normed, cu_seqlens, threads)
        attended, post1 = _maybe_norm(layer.attention_post_norm, attended, threads)
        h = x + attended
        normed, norm2 = _maybe_norm(layer.feed_forward_norm, h, threads)
        fed, feed_forward = feed_forward_forward(layer.feed_forward, normed, threads)
        fed, post2 = _maybe_norm(layer.feed_forward_post_norm, fed, threads)
        y = h + fed
    else:
        attended, attention = attention_forward(layer.attention, x, cu_seqlens, threads)
        h, norm1 = _maybe_norm(layer.attention_norm, x + attended, threads)
        fed, feed_forward = feed_forward_forward(layer.feed_forward, h, threads)
        y, norm2 = _maybe_norm(layer.feed_forward_norm, h + fed, threads)
    return y, SavedLayer(attention, norm1, post1, feed_forward, norm2, post2)


def encoder_layer_backward(
    layer: EncoderLayer, saved: SavedLayer, grad_y: Array, threads: int
) -> tuple[Array, Weights]:
    grads: Weights = {}

    def norm(name: str, grad: Array) -> Array:
        part, x = getattr(layer, name), getattr(saved, name)
        if part is None:
            return grad
        grad_x, grads[name] = norm_backward(part, x, grad, threads)
        return grad_x

    def attention(grad: Array) -> Array:
        grad_x, grads["attention"] = attention_backward(layer.attention, saved.attention, grad, threads)
        return grad_x

    def feed_forward(grad: Array) -> Array:
        grad_x, grads["feed_forward"] = feed_forward_backward(
            layer.feed_forward, saved.feed_forward, grad, threads
        )
        return grad_x

    if layer.norm_first:
        grad_h = norm("feed_forward_norm", feed_forward(norm("feed_forward_post_norm", grad_y)))
        grad_h += grad_y
        grad_x = norm("attention_norm", attention(norm("attention_post_norm", grad_h)))
        grad_x += grad_h
    else:
        grad_sum = norm("feed_forward_norm", grad_y)
        grad_h = feed_forward(grad_sum)
        grad_h += grad_sum
        grad_sum = norm("attention_norm", grad_h)
        grad_x = attention(grad_sum)
        grad_x += grad_sum
    return grad_x, _of(layer, grads)


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
    for layer in stack._whole:
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
    grad, grads = grad_y, Weights()
    if stack.final_norm is not None:
        grad, grads["final_norm"] = norm_backward(stack.final_norm, saved.final_norm, grad, threads)
    of_layers: list[Weights] = []
    for layer, kept in zip(reversed(stack._whole), reversed(saved.layers), strict=True):
        if not isinstance(kept, SavedLayer):
            _, kept = encoder_layer_forward(layer, kept, saved.cu_seqlens, threads)
        grad, of_layer = encoder_layer_backward(layer, kept, grad, threads)
        of_layers.append(of_layer)
    grads["layers"] = of_layers[::-1]
    if stack.relative_bias is not None:
        table = np.zeros(stack.relative_bias.table.shape)
        for layer, of_layer in zip(stack.layers, grads["layers"], strict=True):
            if layer.attention.relative_bias is None:  # it added the shared one
                table += of_layer["attention"].pop("relative_bias")["table"]
        grads["relative_bias"] = {"table": table.astype(np.float32)}
    return grad, _of(stack, grads)


def _side_by_side(array: Array) -> Array:
    """(tokens, heads, dim) -> (tokens, heads * dim)."""
    tokens, heads, dim = array.shape
    return array.reshape(tokens, heads * dim)


def _of(layer: Layer, grads: Weights) -> Weights:
    """The gradients of the weights that the layer has, in their order."""
    return {name: grads[name] for name in layer.weights() if name in grads}
