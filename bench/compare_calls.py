# SPDX-License-Identifier: Apache-2.0
"""The calls that compare.py compares, run inside of either build, through the public names of selfattn alone.

`compare_calls.py names` prints their names. `compare_calls.py count [NAME ...]` makes every call twice
between two marks, for callgrind, and prints the names of those that this build can do. `compare_calls.py
time` reads lines "NAME NUMBER" and answers each with the seconds of so many calls, or an error.
"""

import gc
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np

import selfattn

Call = Callable[[], Any]
COUNTED = 2  # calls between the marks


def attention(
    *sizes: int,
    kv_heads: int | None = None,
    queries: int | None = None,
    dtype: Any = np.float32,
    **options: Any,
) -> Call:
    """sizes: batch, heads, length, head_dim."""
    batch, heads, length, head_dim = sizes
    rng = np.random.default_rng(0)
    shapes = [
        (batch, heads, queries or length, head_dim),
        *[(batch, kv_heads or heads, length, head_dim)] * 2,
    ]
    arrays = [rng.standard_normal(shape, dtype=dtype) for shape in shapes]
    return lambda: selfattn.attention(*arrays, num_threads=1, **options)


def from_memory(*sizes: int, **options: Any) -> Call:
    """A query over caches that take turns: none is in the processor's when its turn comes."""
    turns = cycle([attention(*sizes, queries=1, **options) for _ in range(3)])
    return lambda: next(turns)()


def from_cache(batch: int, heads: int, kv_heads: int, length: int, head_dim: int, dtype: str) -> Call:
    """A query over a cache of that dtype, float32 or, with ml_dtypes, bfloat16."""
    if dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(dtype)
    rng = np.random.default_rng(0)
    shapes = [(batch, heads, 1, head_dim), *[(batch, kv_heads, length, head_dim)] * 2]
    query, key, value = (rng.standard_normal(shape, dtype=np.float32).astype(kind) for shape in shapes)
    cache = selfattn.KVCache(batch, kv_heads, head_dim, capacity=length, dtype=kind)
    cache.append(key, value)
    return lambda: cache.attention(query, causal=False, num_threads=1)


def gradients(*sizes: int, **options: Any) -> Call:
    rng = np.random.default_rng(0)
    grad, *arrays = (rng.standard_normal(sizes, dtype=np.float32) for _ in range(4))
    out, lse = selfattn.attention(*arrays, return_lse=True, **options)
    return lambda: selfattn.attention_backward(grad, *arrays, out, lse, num_threads=1, **options)


def of_minilm(layers: int) -> Any:
    """Layers of MiniLM's sizes, on random weights: one in the cache, or all six in memory."""
    rng = np.random.default_rng(0)
    return [selfattn.EncoderLayer.initialize(384, 12, 1536, rng=rng) for _ in range(layers)]


def encoder(batch: int, length: int, layers: int = 1) -> Call:
    model = selfattn.Encoder(of_minilm(layers))
    x = np.random.default_rng(1).standard_normal((batch, length, 384), dtype=np.float32)
    return lambda: model(x, num_threads=1)


def ragged(*lengths: int, layers: int = 1) -> Call:
    """Sequences of these lengths, packed."""
    model = selfattn.Encoder(of_minilm(layers))
    x = np.random.default_rng(1).standard_normal((sum(lengths), 384), dtype=np.float32)
    bounds = np.cumsum([0, *lengths])
    return lambda: model(x, cu_seqlens=bounds, num_threads=1)


def layer_gradients(batch: int, length: int) -> Call:
    """Of a layer of MiniLM's sizes: the gradients of its weights and of its input."""
    (layer,) = of_minilm(1)
    rng = np.random.default_rng(1)
    x, grad = (rng.standard_normal((batch, length, 384), dtype=np.float32) for _ in range(2))
    _, saved = layer.forward(x, num_threads=1)
    return lambda: layer.backward(saved, grad, num_threads=1)[0]


CALLS: dict[str, Callable[[], Call]] = {
    "attention-1x1x8x16": lambda: attention(1, 1, 8, 16),
    "attention-4x12x32x32": lambda: attention(4, 12, 32, 32),
    "attention-1x4x128x64": lambda: attention(1, 4, 128, 64),
    "attention-1x1x512x64": lambda: attention(1, 1, 512, 64),
    "attention-1x1x256x128": lambda: attention(1, 1, 256, 128),
    "attention-8x12x128x64": lambda: attention(8, 12, 128, 64),
    "attention-1x1x2048x64": lambda: attention(1, 1, 2048, 64),
    "float64-1x4x128x64": lambda: attention(1, 4, 128, 64, dtype=np.float64),
    "causal-1x4x48x64": lambda: attention(1, 4, 48, 64, causal=True),
    "causal-1x4x128x64": lambda: attention(1, 4, 128, 64, causal=True),
    "causal-1x4x256x64": lambda: attention(1, 4, 256, 64, causal=True),
    "causal-1x1x512x64": lambda: attention(1, 1, 512, 64, causal=True),
    "gradients-1x4x48x64": lambda: gradients(1, 4, 48, 64, causal=True),
    "gradients-1x4x128x64": lambda: gradients(1, 4, 128, 64, causal=True),
    "gradients-1x2x256x64-full": lambda: gradients(1, 2, 256, 64),
    "gradients-layer-2x32": lambda: layer_gradients(2, 32),
    "decode-1x16x4x1024x64": lambda: attention(1, 16, 1024, 64, kv_heads=4, queries=1),
    "cache-1x16x4x1024x64": lambda: from_cache(1, 16, 4, 1024, 64, "float32"),
    "cache-bfloat16-1x16x4x1024x64": lambda: from_cache(1, 16, 4, 1024, 64, "bfloat16"),
    "decode-1x32x8x8192x128": lambda: from_memory(1, 32, 8192, 128, kv_heads=8),
    "decode-1x8x8x16384x64": lambda: from_memory(1, 8, 16384, 64),
    "encoder-1x10": lambda: encoder(1, 10),
    "encoder-1x64": lambda: encoder(1, 64),
    "encoder-1x128": lambda: encoder(1, 128),
    "encoder-ragged": lambda: ragged(3, 40, 17, 9, 64, 1),
    "layers-6x5": lambda: encoder(1, 5, layers=6),
    "layers-6x10": lambda: encoder(1, 10, layers=6),
}


@cache
def warm(name: str) -> Call:
    call = CALLS[name]()
    call()
    return call


def count(*names: str) -> None:
    """Between the marks of a call lie its instructions, and nothing of the imports and of the warming up."""
    gc.disable()  # it would fall into one call of a build and into another of the other
    for name in names or CALLS:
        try:
            call = warm(name)
        except Exception:
            continue
        print(name)
        mark()
        for _ in range(COUNTED):
            call()
        mark()


def mark() -> None:
    """callgrind writes what it has counted, and starts from zero, when this function of libc is entered."""
    os.getppid()


def answer() -> None:
    for line in sys.stdin:
        name, number = line.split()
        try:
            call = warm(name)
            start = time.perf_counter()
            for _ in range(int(number)):
                call()
            print(time.perf_counter() - start, flush=True)
        except Exception as error:
            print(f"error: {type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    {"names": lambda: print(*CALLS), "count": count, "time": answer}[sys.argv[1]](*sys.argv[2:])
