# SPDX-License-Identifier: Apache-2.0
"""Layers: their parts as functions, cells, heads, encoders, their gradients, steps of training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from attention_cases import DTYPES, THREADS, Case
from exact import Array, Numbers

from selfattn import functional, train
from selfattn.layers import (
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    MultiHeadSelfAttention,
    RMSNorm,
    SelfAttentionCell,
)

ACTIVATIONS: tuple[Any, ...] = ("gelu", "gelu_tanh", "relu", "silu")
NORM_SHAPES = ((1, 1), (3, 7), (5, 24), (17, 33), (40, 384), (150, 40), (9, 1000))


def cases() -> Iterator[Case]:
    yield from functions()
    yield from parts()
    yield from encoders()
    yield from training()


# ---- functional ----


def linear(name: str, rows: int, depth: int, width: int, dtype: Any, turned: bool, **how: Any) -> object:
    n = Numbers(name)
    x, weight = n.normal(rows, depth, dtype=dtype), n.normal(depth, width, dtype=dtype)
    if turned:
        weight = np.ascontiguousarray(weight.T).T
    bias = n.normal(width, dtype=dtype)
    threads = {"num_threads": THREADS}
    y = functional.linear(x, weight, bias, **how, **threads)
    if "precision" in how:
        return y
    grad_y = n.normal(rows, width, dtype=dtype)
    grads = functional.linear_backward(grad_y, x, weight, bias=True, **threads)
    return y, functional.linear(x, weight, **threads), grads, functional.column_sums(x, **threads)


def norm(name: str, rows: int, width: int, dtype: Any) -> object:
    n = Numbers(name)
    x, grad_y = n.normal(rows, width, dtype=dtype), n.normal(rows, width, dtype=dtype)
    weight, bias = n.normal(width, dtype=dtype), n.normal(width, dtype=dtype)
    threads = {"num_threads": THREADS}
    return (
        functional.layer_norm(x, weight, bias, eps=1e-12, **threads),
        functional.layer_norm(x, **threads),
        functional.rms_norm(x, weight, **threads),
        functional.layer_norm_backward(grad_y, x, weight, **threads),
        functional.layer_norm_backward(grad_y, x, None, eps=1e-6, **threads),
        functional.rms_norm_backward(grad_y, x, weight, **threads),
    )


def activation(name: str, of: str, dtype: Any) -> object:
    n = Numbers(name)
    x = n.normal(37, 65, dtype=dtype, scale=2.0)
    x[0, :12] = [0, -0.0, 1e-30, -1e-30, 5, -5, 9, -9, 14, -14, 60, -60]
    x[1, :3] = [np.inf, -np.inf, np.nan]
    up, grad_y = n.normal(37, 65, dtype=dtype), n.normal(37, 65, dtype=dtype)
    forward, backward = getattr(functional, of), getattr(functional, f"{of}_backward")
    return (
        forward(x, num_threads=THREADS),
        backward(grad_y, x, num_threads=THREADS),
        functional.gate_backward(grad_y, x, up, of, num_threads=THREADS),
    )


def functions() -> Iterator[Case]:
    shapes = [
        (1, 1, 1),
        (1, 384, 384),
        (2, 100, 65),
        (3, 384, 1536),
        (7, 33, 17),
        (16, 385, 64),
        (33, 64, 100),
    ]
    shapes += [(64, 770, 48), (100, 24, 200), (130, 400, 33)]
    for dtype in ("float32", "float64"):
        for (rows, depth, width), turned in itertools.product(shapes, (False, True)):
            name = f"functional/linear/{dtype}/{rows}x{depth}x{width}{'/turned' if turned else ''}"
            yield name, partial(linear, name, rows, depth, width, DTYPES[dtype], turned)
        for rows, width in NORM_SHAPES:
            name = f"functional/norms/{dtype}/{rows}x{width}"
            yield name, partial(norm, name, rows, width, DTYPES[dtype])
    for dtype, kind in DTYPES.items():
        for of in ACTIVATIONS:
            name = f"functional/{of}/{dtype}"
            yield name, partial(activation, name, of, kind)
            name = f"functional/linear/{dtype}/{of}"
            yield name, partial(linear, name, 20, 50, 70, kind, True, activation=of)
    for dtype in ("float16", "bfloat16"):
        name = f"functional/norms/{dtype}"
        yield name, partial(norm, name, 9, 50, DTYPES[dtype])
    for rows in (1, 5, 40):
        name = f"functional/linear/precision=bfloat16/{rows}"
        yield (
            name,
            partial(linear, name, rows, 385, 130, np.float32, True, activation="gelu", precision="bfloat16"),
        )


# ---- what layers are made of ----


def weight(n: Numbers, d_in: int, d_out: int) -> Array:
    """Outputs about as large as inputs: the scale is a power of two near 1 / sqrt(d_in)."""
    return n.normal(d_in, d_out, scale=2.0 ** -round(np.log2(d_in) / 2))


def heads(
    n: Numbers,
    d_model: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    *,
    bias: bool = True,
    output: bool = True,
    **settings: Any,
) -> MultiHeadSelfAttention:
    widths = (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * value_dim)
    matrices = [weight(n, d_model, width) for width in widths]
    joined = num_heads * value_dim
    biases = {
        f"{role}_bias": n.normal(width, scale=0.125)
        for role, width in zip(("query", "key", "value"), widths, strict=True)
    }
    if output:
        biases["output_bias"] = n.normal(d_model, scale=0.125)
    return MultiHeadSelfAttention(
        *matrices,
        weight(n, joined, d_model) if output else None,
        **(biases if bias else {}),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        **settings,
    )


def unit(n: Numbers, d_model: int, kind: str, bias: bool) -> LayerNorm | RMSNorm:
    scale = 1 + n.normal(d_model, scale=0.125)
    if kind == "rms":
        return RMSNorm(scale)
    return LayerNorm(scale, n.normal(d_model, scale=0.125) if bias else None, eps=1e-12)


def feed_forward(n: Numbers, d_model: int, d_ff: int, of: str, gated: bool, bias: bool) -> FeedForward:
    up, down = weight(n, d_model, d_ff), weight(n, d_ff, d_model)
    gate = weight(n, d_model, d_ff) if gated else None
    offsets = [n.normal(width, scale=0.125) if bias else None for width in (d_ff, d_model, d_ff)]
    return FeedForward(up, down, *offsets[:2], gate, offsets[2] if gated else None, of)


def layer(n: Numbers, d_model: int = 48, *, norm_first: bool = False, kind: str = "layer", of: str = "gelu",
          gated: bool = False, bias: bool = True, num_heads: int = 4, kv_heads: int = 4,
          d_ff: int = 100, **settings: Any) -> EncoderLayer:  # fmt: skip
    dim = d_model // num_heads
    attention = heads(n, d_model, num_heads, kv_heads, dim, dim, bias=bias, **settings)
    network = feed_forward(n, d_model, d_ff, of, gated, bias)
    return EncoderLayer(
        attention, unit(n, d_model, kind, bias), network, unit(n, d_model, kind, bias), norm_first
    )


def encoder(n: Numbers, depth: int = 2, d_model: int = 48, final: bool = False, **make: Any) -> Encoder:
    layers = [layer(n, d_model, **make) for _ in range(depth)]
    return Encoder(layers, unit(n, d_model, "layer", True) if final else None)


LENGTHS = (30, 0, 1, 17)
WAYS: dict[str, dict[str, Any]] = {
    "dense": {},
    "padded": {"lengths": LENGTHS},
    "packed": {"cu_seqlens": np.concatenate([[0], np.cumsum(LENGTHS)])},
}


def words(n: Numbers, way: str, d_model: int) -> Array:
    return n.normal(sum(LENGTHS), d_model) if way == "packed" else n.normal(4, 30, d_model)


def part(name: str, make: Callable[[Numbers], Any], d_model: int, way: str, threads: int = THREADS) -> object:
    """The call, forward and backward of something that takes lengths, and its attention weights."""
    n = Numbers(name)
    one, x = make(n), words(n, way, d_model)
    how: dict[str, Any] = {"num_threads": threads}
    y = one(x, **WAYS[way], **how)
    y_saved, saved = one.forward(x, **WAYS[way], **how)
    grads = one.backward(saved, n.normal(*y.shape), **how)
    seen = one.attention_weights(x, **WAYS[way], **how) if hasattr(one, "attention_weights") else None
    return y, y_saved, grads, seen


def single(name: str, make: Callable[[Numbers], Any], d_model: int) -> object:
    """Of something that works word by word."""
    n = Numbers(name)
    one, x = make(n), n.normal(3, 11, d_model)
    y, saved = one.forward(x, num_threads=THREADS)
    grads = one.backward(saved, n.normal(*y.shape), num_threads=THREADS)
    return one(x, num_threads=THREADS), y, grads


def cell(n: Numbers, bias: bool) -> SelfAttentionCell:
    widths = (24, 24, 20)
    offsets = [n.normal(width, scale=0.125) if bias else None for width in widths]
    return SelfAttentionCell(*(weight(n, 48, width) for width in widths), *offsets)


def parts() -> Iterator[Case]:
    makes: dict[str, Callable[[Numbers], Any]] = {
        "cell": partial(cell, bias=True),
        "cell/no_bias": partial(cell, bias=False),
        "heads": lambda n: heads(n, 48, 4, 4, 12, 12),
        "heads/grouped": lambda n: heads(n, 48, 6, 2, 16, 10),
        "heads/causal": lambda n: heads(n, 48, 6, 3, 8, 8, causal=True),
        "heads/scale": lambda n: heads(n, 48, 2, 1, 24, 24, scale=-0.25, bias=False),
        "heads/no_output": lambda n: heads(n, 48, 3, 3, 16, 16, output=False),
    }
    for kind, make in makes.items():
        for way in WAYS:
            name = f"layers/{kind}/{way}"
            yield name, partial(part, name, make, 48, way)
    for of, gated, bias in itertools.product(ACTIVATIONS, (False, True), (False, True)):
        name = f"layers/feed_forward/{of}{'/gated' if gated else ''}{'/bias' if bias else ''}"
        yield (
            name,
            partial(
                single, name, partial(feed_forward, d_model=48, d_ff=70, of=of, gated=gated, bias=bias), 48
            ),
        )
    for kind in ("layer", "rms"):
        name = f"layers/norm/{kind}"
        yield name, partial(single, name, partial(unit, d_model=48, kind=kind, bias=True), 48)


# ---- layers in depth ----


def whole(
    name: str, make: dict[str, Any], way: str, threads: int = THREADS, recompute: bool = False
) -> object:
    n = Numbers(name)
    stack = encoder(n, **make)
    x = words(n, way, stack.d_model)
    how: dict[str, Any] = WAYS[way] | {"num_threads": threads}
    y, saved = stack.forward(x, **how, recompute=recompute)
    grads = stack.backward(saved, n.normal(*y.shape), num_threads=threads)
    return stack(x, **how), y, stack.hidden_states(x, **how), grads


def call(
    name: str, make: dict[str, Any], rows: tuple[int, ...], threads: int, precision: Any = None
) -> object:
    """The call alone, on sequences of these lengths."""
    n = Numbers(name)
    stack = encoder(n, **make)
    stack = Encoder(stack.layers, stack.final_norm, precision)
    x = n.normal(sum(rows), stack.d_model)
    return stack(x, cu_seqlens=np.concatenate([[0], np.cumsum(rows)]), num_threads=threads)


def stored(name: str) -> object:
    n = Numbers(name)
    stack, x = encoder(n, final=True), words(n, "dense", 48)
    with TemporaryDirectory() as folder:
        stack.save(Path(folder) / "encoder.safetensors")
        loaded = Encoder.load(Path(folder) / "encoder.safetensors")
    return loaded(x, num_threads=THREADS), loaded.weights()


def encoders() -> Iterator[Case]:
    kinds = itertools.product((False, True), ("layer", "rms"), (False, True), (4, 2), (False, True))
    for i, (first, kind, gated, kv_heads, bias) in enumerate(kinds):
        of = ACTIVATIONS[i % 4]
        make = {
            "norm_first": first,
            "kind": kind,
            "gated": gated,
            "kv_heads": kv_heads,
            "bias": bias,
            "of": of,
        }
        make |= {"final": i % 3 == 0, "causal": i % 5 == 0}
        words_of = ["pre" if first else "post", kind, *(["gated"] if gated else []), f"kv_heads={kv_heads}"]
        name = f"encoder/{'/'.join([*words_of, *([] if bias else ['no_bias']), of])}"
        yield f"{name}/dense", partial(whole, name, make, "dense")
        yield f"{name}/padded", partial(whole, name, make, "padded")
    for first in (False, True):
        make = {"norm_first": first, "gated": first, "causal": True, "final": first, "depth": 3}
        kind = "pre" if first else "post"
        name = f"encoder/causal/{kind}"
        for way in WAYS:
            for threads in (1, 2, 3):
                yield f"{name}/{way}/threads={threads}", partial(whole, f"{name}/{way}", make, way, threads)
        yield f"{name}/recompute", partial(whole, f"{name}/padded", make, "padded", THREADS, True)
        for d_model, num_heads in ((24, 1), (64, 2), (100, 5), (384, 12)):
            make = {"norm_first": first, "d_model": d_model, "num_heads": num_heads, "kv_heads": num_heads}
            make |= {"d_ff": 4 * d_model, "kind": "rms" if first else "layer", "gated": first}
            name = f"encoder/call/{kind}/{d_model}"
            for rows in ((1,), (7, 12), (5, 200, 0, 33, 64), (1,) * 40):
                for threads in (1, 2):
                    own = f"{name}/{len(rows)}_sequences_of_up_to_{max(rows)}"
                    yield f"{own}/threads={threads}", partial(call, own, make, rows, threads)
            name = f"encoder/precision=bfloat16/{kind}/{d_model}"
            yield name, partial(call, name, make, (9, 70), THREADS, "bfloat16")
    yield "encoder/stored", partial(stored, "encoder/stored")


# ---- learning ----


def steps(name: str, make: dict[str, Any], way: str) -> object:
    """Four steps against the gradient, of a length that is a power of two."""
    n = Numbers(name)
    stack = encoder(n, **make)
    x = words(n, way, stack.d_model)
    grad_y = n.normal(*x.shape, scale=2.0**-6)
    results = []
    for _ in range(4):
        y, saved = stack.forward(x, **WAYS[way], num_threads=THREADS)
        _, grads = stack.backward(saved, grad_y, num_threads=THREADS)
        weights = train.flatten(stack.weights())
        moved = {key: weights[key] - grad * np.float32(2.0**-7) for key, grad in train.flatten(grads).items()}
        stack = stack.replace(train.unflatten(moved, stack.weights()))
        results.append(y)
    return results, stack.weights()


def optimizer(name: str) -> object:
    n = Numbers(name)
    stack = encoder(n, norm_first=True, final=True)
    x, targets = words(n, "dense", 48), n.integers(0, 48, 4, 30)
    weights = stack.weights()
    adam, losses = train.AdamW(weights), []
    for step in range(4):
        y, saved = stack.forward(x, num_threads=THREADS)
        loss, grad_y = train.cross_entropy(y, targets)
        _, grads = stack.backward(saved, grad_y, num_threads=THREADS)
        train.clip_gradients(grads, 1.0)
        weights = adam.step(weights, grads, train.warmup_cosine(step, 2, 4, peak=1e-3))
        stack = stack.replace(weights)
        losses.append(loss)
    return losses, weights


def contrastive(name: str) -> object:
    n = Numbers(name)
    a, b = n.normal(12, 40), n.normal(15, 40)
    return train.contrastive_loss(a, b), train.contrastive_loss(a, b[:12], symmetric=True)


def training() -> Iterator[Case]:
    makes: dict[str, dict[str, Any]] = {
        "post": {},
        "pre": {"norm_first": True, "final": True},
        "gated": {"norm_first": True, "kind": "rms", "gated": True, "of": "silu", "bias": False},
        "grouped": {"kv_heads": 2, "causal": True, "of": "relu"},
    }
    for kind, make in makes.items():
        for way in WAYS:
            name = f"training/{kind}/{way}"
            yield name, partial(steps, name, make, way)
    yield "numpy/adamw", partial(optimizer, "numpy/adamw")
    yield "numpy/contrastive", partial(contrastive, "numpy/contrastive")
