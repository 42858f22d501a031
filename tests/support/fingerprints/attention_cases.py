# SPDX-License-Identifier: Apache-2.0
"""The operator in all its forms: dense, packed, paged, cached; weights and sums of columns; gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from exact import Array, Numbers

import selfattn

Case = tuple[str, Callable[[], object]]
Sizes = tuple[int, int, int, int, int, int, int]  # batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
THREADS = 2
SMALL: Sizes = (2, 4, 2, 19, 45, 24, 24)
MIDDLE: Sizes = (1, 6, 2, 40, 330, 33, 70)
SQUARE: Sizes = (2, 3, 3, 161, 161, 64, 64)
FEW: Sizes = (2, 8, 2, 1, 500, 64, 64)
SHAPES = {"small": SMALL, "middle": MIDDLE, "square": SQUARE, "few": FEW}
DIMS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 72, 80, 96,
        97, 112, 127, 128, 129, 130)  # fmt: skip
LENGTHS = (1, 2, 7, 16, 63, 64, 65, 143, 144, 145, 288, 500, 1000, 1727, 1728, 1729, 2500, 3456, 3457, 4000)


def cases() -> Iterator[Case]:
    yield from operator()
    yield from sizes()
    yield from layouts()
    yield from nan()
    yield from varlen()
    yield from paged()
    yield from cache()
    yield from others()


def qkv(n: Numbers, sizes: Sizes, dtype: Any) -> tuple[Array, Array, Array]:
    batch, heads, kv_heads, q_len, kv_len, dim, value_dim = sizes
    return (
        n.normal(batch, heads, q_len, dim, dtype=dtype),
        n.normal(batch, kv_heads, kv_len, dim, dtype=dtype),
        n.normal(batch, kv_heads, kv_len, value_dim, dtype=dtype),
    )


# ---- options ----


def slopes(heads: int) -> Array:
    return (2.0 ** -np.arange(1, heads + 1)).astype(np.float32)


def sinks(heads: int) -> Array:
    return np.array([0.5, -1.0, 3.0, -np.inf, 0.0, 7.0, 1.25, -2.5][:heads])


def options(n: Numbers, sizes: Sizes, dtype: Any) -> dict[str, dict[str, Any]]:
    """By name; the names do not depend on the sizes."""
    batch, heads, _, q_len, kv_len = sizes[:5]
    lengths = n.integers(0, kv_len + 1, batch)
    mask = n.mask(batch, 1, q_len, kv_len)
    mask[..., q_len // 2 : q_len // 2 + 1, :] = False
    bias = n.normal(heads, q_len, kv_len, dtype=dtype)
    hiding = n.normal(q_len, kv_len)
    hiding[n.mask(q_len, kv_len, share=0.25)] = -np.inf
    table = {
        "plain": {},
        "mask": {"mask": mask},
        "mask_of_keys": {"mask": n.mask(kv_len)},
        "bias": {"bias": bias},
        "bias_of_keys": {"bias": n.normal(batch, 1, 1, kv_len)},
        "bias_that_hides": {"bias": hiding},
        "top_left": {"causal": "top_left"},
        "bottom_right": {"causal": "bottom_right"},
        "window": {"window": (17, 4)},
        "window_to_the_left": {"window": (9, 0), "causal": "bottom_right"},
        "window_to_the_right": {"window": (None, 3)},
        "lengths": {"kv_lengths": lengths},
        "lengths_bottom_right": {"kv_lengths": lengths, "causal": "bottom_right"},
        "scale=0": {"scale": 0.0},
        "scale<0": {"scale": -0.375},
        "scale_large": {"scale": 1e25},
        "scale_small": {"scale": 1e-25},
        "softcap": {"softcap": 1.5},
        "alibi": {"alibi_slopes": slopes(heads)},
        "sinks": {"sinks": sinks(heads)},
        "dropout": {"dropout": 0.3, "seed": 20170612},
    }
    table["everything"] = {
        "mask": mask,
        "bias": bias,
        "causal": "bottom_right",
        "window": (kv_len // 2, 3),
        "kv_lengths": lengths,
        "scale": 0.3125,
        "softcap": 2.0,
        "alibi_slopes": slopes(heads),
        "sinks": sinks(heads),
        "dropout": 0.2,
        "seed": 7,
    }
    return table


NAMES = tuple(options(Numbers("names"), SMALL, np.float32))
GRADIENTS = {"bias": "bias", "sinks": "sinks", "alibi_slopes": "alibi_slopes"}


def without_dropout(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("dropout", "seed")}


# ---- dense ----


def forward(name: str, sizes: Sizes, dtype: Any, option: str, threads: int = THREADS, **more: Any) -> object:
    n = Numbers(name)
    given = options(n, sizes, dtype)[option] | more
    return selfattn.attention(*qkv(n, sizes, dtype), **given, return_lse=True, num_threads=threads)


def weights(name: str, sizes: Sizes, dtype: Any, option: str, **more: Any) -> object:
    n = Numbers(name)
    given = without_dropout(options(n, sizes, dtype)[option]) | more
    query, key, _ = qkv(n, sizes, dtype)
    rows = [0, sizes[3] - 1, sizes[3] // 2, -1]
    return (
        selfattn.attention_weights(query, key, **given, num_threads=THREADS),
        selfattn.attention_weights(query, key, **given, rows=rows, num_threads=THREADS),
        selfattn.attention_column_sums(query, key, **given, num_threads=THREADS),
    )


def backward(name: str, sizes: Sizes, dtype: Any, option: str, threads: int = THREADS, **more: Any) -> object:
    n = Numbers(name)
    given = options(n, sizes, dtype)[option] | more
    arrays = qkv(n, sizes, dtype)
    out, lse = selfattn.attention(*arrays, **given, return_lse=True, num_threads=threads)
    need = ("query", "key", "value", *(name for name in GRADIENTS if name in given))
    grad_out = n.normal(*out.shape, dtype=dtype)
    return selfattn.attention_backward(grad_out, *arrays, out, lse, **given, need=need, num_threads=threads)


def operator() -> Iterator[Case]:
    functions = {"forward": forward, "weights": weights, "backward": backward}
    of_dtype = {"float32": ("small", "middle", "square", "few"), "float64": ("small", "middle")}
    for dtype, kind in DTYPES.items():
        for shape in of_dtype.get(dtype, ("small", "few")):
            for option in NAMES:
                for what, function in functions.items():
                    if (shape in ("square", "few") and what != "forward") or (
                        dtype != "float32" and shape == "small" and what == "weights"
                    ):
                        continue
                    name = f"operator/{what}/{dtype}/{shape}/{option}"
                    yield name, partial(function, name, SHAPES[shape], kind, option)
    for option in ("plain", "bias", "everything"):
        for shape in ("middle", "square"):
            for what, function in functions.items():
                name = f"operator/{what}/precision=bfloat16/{shape}/{option}"
                yield name, partial(function, name, SHAPES[shape], np.float32, option, precision="bfloat16")
    for threads in (1, 3):
        for what, function in (("forward", forward), ("backward", backward)):
            name = f"operator/{what}/float32/middle/everything"
            yield (
                f"{name}/threads={threads}",
                partial(function, name, MIDDLE, np.float32, "everything", threads),
            )


def causal(name: str, length: int, dim: int, kv_heads: int, dtype: Any) -> object:
    n = Numbers(name)
    arrays = qkv(n, (1, 4, kv_heads, length, length, dim, dim), dtype)
    out, lse = selfattn.attention(*arrays, causal=True, return_lse=True, num_threads=THREADS)
    grad_out = n.normal(*out.shape, dtype=dtype)
    grads = selfattn.attention_backward(grad_out, *arrays, out, lse, causal=True, num_threads=THREADS)
    return out, lse, grads


def sizes() -> Iterator[Case]:
    for dim in DIMS:
        name = f"sizes/head_dim={dim}"
        yield name, partial(forward, name, (1, 2, 1, 13, 70, dim, 16), np.float32, "plain")
        name = f"sizes/value_dim={dim}"
        yield name, partial(forward, name, (1, 2, 1, 13, 70, 16, dim), np.float32, "plain")
        name = f"sizes/backward/dim={dim}"
        yield name, partial(backward, name, (1, 2, 1, 13, 40, dim, 131 - dim), np.float32, "plain")
    for dim in DIMS[::3]:
        name = f"sizes/float64/dim={dim}"
        yield name, partial(forward, name, (1, 2, 1, 13, 70, dim, 131 - dim), np.float64, "plain")
        name = f"sizes/bfloat16/dim={dim}"
        yield name, partial(forward, name, (1, 2, 1, 3, 70, dim, 131 - dim), ml_dtypes.bfloat16, "plain")
    for length in LENGTHS:
        for q_len in (1, 20):
            name = f"sizes/q_len={q_len}/kv_len={length}"
            yield name, partial(forward, name, (1, 4, 2, q_len, length, 32, 32), np.float32, "plain")
        name = f"sizes/float64/kv_len={length}"
        yield name, partial(forward, name, (1, 1, 1, 5, length, 8, 8), np.float64, "bottom_right")
    for length in (2500, 4000):
        name = f"sizes/weights/kv_len={length}"
        yield name, partial(weights, name, (1, 2, 1, 9, length, 16, 16), np.float32, "everything")
        name = f"sizes/backward/kv_len={length}"
        yield name, partial(backward, name, (1, 2, 1, 30, length, 16, 16), np.float32, "everything")
    for length, dim, kv_heads in ((1, 64, 4), (33, 64, 4), (128, 64, 2), (200, 48, 1), (384, 32, 4)):
        for dtype in ("float32", "float64", "float16"):
            name = f"sizes/causal/{dtype}/{length}x{dim}/kv_heads={kv_heads}"
            yield name, partial(causal, name, length, dim, kv_heads, DTYPES[dtype])
    for sizes in ((0, 2, 2, 3, 3, 8, 8), (2, 2, 2, 0, 3, 8, 8), (2, 2, 2, 3, 0, 8, 8), (2, 2, 2, 3, 3, 8, 0)):
        name = f"sizes/empty/{'x'.join(map(str, sizes))}"
        yield name, partial(forward, name, sizes, np.float32, "plain")


# ---- how arrays lie in memory ----


def _misaligned(array: Array) -> Array:
    room = np.zeros(array.nbytes + 1, np.uint8)
    moved = room[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def _every_other(array: Array) -> Array:
    room = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    room[..., ::2] = array
    return room[..., ::2]


def _on_pages(array: Array) -> Array:
    room = np.full((*array.shape[:-1], 4096 // array.itemsize), np.nan, array.dtype)
    room[..., : array.shape[-1]] = array
    return room[..., : array.shape[-1]]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "heads_inside": lambda a: np.ascontiguousarray(a.swapaxes(-2, -3)).swapaxes(-2, -3),
    "backwards": lambda a: np.flip(np.flip(a).copy()),
    "misaligned": _misaligned,
    "every_other": _every_other,
    "on_pages": _on_pages,
}


def laid_out(name: str, layout: str, dtype: Any) -> object:
    n = Numbers(name)
    lay = LAYOUTS[layout]
    arrays = [lay(array) for array in qkv(n, MIDDLE, dtype)]
    bias = lay(n.normal(1, 6, 40, 330, dtype=dtype))
    out, lse = selfattn.attention(*arrays, bias=bias, return_lse=True, num_threads=THREADS)
    into = lay(np.zeros_like(out))
    selfattn.attention(*arrays, bias=bias, out=into, num_threads=THREADS)
    grads = selfattn.attention_backward(
        lay(n.normal(*out.shape, dtype=dtype)), *arrays, lay(out), lse, bias=bias,
        need=("query", "key", "value", "bias"), num_threads=THREADS,
    )  # fmt: skip
    return out, lse, into, grads


def broadcast(name: str) -> object:
    n = Numbers(name)
    query, key = n.normal(3, 1, 4, 9, 16), n.normal(2, 2, 30, 16)
    value, bias = n.normal(1, 2, 2, 30, 12), n.normal(2, 1, 1, 30)
    out, lse = selfattn.attention(query, key, value, bias=bias, return_lse=True, num_threads=THREADS)
    need = ("query", "key", "value", "bias")
    grad_out = n.normal(*out.shape)
    grads = selfattn.attention_backward(
        grad_out, query, key, value, out, lse, bias=bias, need=need, num_threads=THREADS
    )
    return out, lse, grads


def layouts() -> Iterator[Case]:
    for layout in LAYOUTS:
        for dtype in ("float32", "float64", "bfloat16"):
            name = f"layouts/{layout}/{dtype}"
            yield name, partial(laid_out, name, layout, DTYPES[dtype])
    yield "layouts/broadcast", partial(broadcast, "layouts/broadcast")


# ---- NaN and Inf ----


def hidden_nan(name: str, how: str, dtype: Any) -> object:
    """NaN and Inf in keys and values that no query sees."""
    n = Numbers(name)
    query, key, value = qkv(n, SMALL, dtype)
    given: dict[str, Any] = {
        "lengths": {"kv_lengths": [20, 0]},
        "mask": {"mask": np.arange(45) < 20},
        "bias": {"bias": np.where(np.arange(45) < 20, 0.5, -np.inf).astype(np.float32)},
        "window": {"window": (0, 0), "causal": "top_left"},
    }[how]
    key[:, :, 20:], value[:, :, 20:] = np.nan, np.inf
    out, lse = selfattn.attention(query, key, value, **given, return_lse=True, num_threads=THREADS)
    grads = selfattn.attention_backward(
        n.normal(*out.shape, dtype=dtype), query, key, value, out, lse, **given, num_threads=THREADS
    )
    return out, lse, grads, selfattn.attention_weights(query, key, **given, num_threads=THREADS)


def visible_nan(name: str, what: float, dtype: Any) -> object:
    n = Numbers(name)
    query, key, value = qkv(n, SMALL, dtype)
    query[0, 1, 3, 2], key[1, 0, 5, 1], value[0, 1, 9, 4] = what, what, what
    return (
        selfattn.attention(query, key, value, return_lse=True, num_threads=THREADS),
        selfattn.attention_weights(query, key, num_threads=THREADS),
        selfattn.attention_column_sums(query, key, num_threads=THREADS),
    )


def nan() -> Iterator[Case]:
    for dtype in ("float32", "float64", "float16"):
        for how in ("lengths", "mask", "bias", "window"):
            name = f"nan/hidden/{how}/{dtype}"
            yield name, partial(hidden_nan, name, how, DTYPES[dtype])
        for what in (np.nan, np.inf):
            name = f"nan/visible/{what}/{dtype}"
            yield name, partial(visible_nan, name, what, DTYPES[dtype])


# ---- packed ----

Q_LENGTHS, KV_LENGTHS = (7, 0, 1, 40, 16), (7, 3, 30, 200, 0)


def bounds(lengths: tuple[int, ...]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)])


def packed(name: str, dtype: Any, given: str, same: bool) -> object:
    n = Numbers(name)
    kv_lengths = Q_LENGTHS if same else KV_LENGTHS
    total_q, total_kv = sum(Q_LENGTHS), sum(kv_lengths)
    query = n.normal(total_q, 6, 24, dtype=dtype)
    key, value = n.normal(total_kv, 2, 24, dtype=dtype), n.normal(total_kv, 2, 40, dtype=dtype)
    how: dict[str, Any] = {
        "plain": {},
        "causal": {"causal": True if same else "bottom_right"},
        "mask": {"mask": n.mask(total_q, max(kv_lengths))},
        "bias": {"bias": n.normal(6, total_q, max(kv_lengths), dtype=dtype)},
        "window": {"window": (11, 2)},
        "lengths": {"kv_lengths": [length // 2 for length in kv_lengths], "causal": "bottom_right"},
        "softcap": {"softcap": 2.0, "scale": -0.5},
        "alibi_and_sinks": {"alibi_slopes": slopes(6), "sinks": sinks(6)},
        "dropout": {"dropout": 0.25, "seed": 3},
        "precision=bfloat16": {"precision": "bfloat16"},
    }[given]
    where = (bounds(Q_LENGTHS), bounds(kv_lengths))
    out, lse = selfattn.varlen_attention(
        query, key, value, *where, **how, return_lse=True, num_threads=THREADS
    )
    if given in ("mask", "bias"):
        return out, lse
    need = ("query", "key", "value", *(extra for extra in ("sinks", "alibi_slopes") if extra in how))
    grads = selfattn.varlen_attention_backward(
        n.normal(*out.shape, dtype=dtype), query, key, value, out, lse, *where,
        **how, need=need, num_threads=THREADS,
    )  # fmt: skip
    return out, lse, grads


def varlen() -> Iterator[Case]:
    ways = ("plain", "causal", "mask", "bias", "window", "lengths", "softcap", "alibi_and_sinks", "dropout")
    for dtype, kind in DTYPES.items():
        for way in ways if dtype in ("float32", "float64") else ways[::3]:
            for same in (True, False):
                name = f"varlen/{dtype}/{way}/{'self' if same else 'cross'}"
                yield name, partial(packed, name, kind, way, same)
    name = "varlen/precision=bfloat16/plain"
    yield name, partial(packed, name, np.float32, "precision=bfloat16", False)


# ---- pages and caches ----


def from_pages(name: str, dtype: Any, page_size: int, given: str, q_len: int) -> object:
    n = Numbers(name)
    lengths = np.array([300, 0, 17, 144])
    per_item = -(-300 // page_size)
    pages = 4 * per_item + 3
    query = n.normal(4, 6, q_len, 20, dtype=dtype)
    keys = n.normal(pages, 2, page_size, 20, dtype=dtype)
    values = n.normal(pages, 2, page_size, 33, dtype=dtype)
    tables = n.rng.permutation(pages)[: 4 * per_item].reshape(4, per_item)
    how: dict[str, Any] = {
        "plain": {},
        "bottom_right": {"causal": "bottom_right"},
        "mask_and_bias": {"mask": n.mask(q_len, 300), "bias": n.normal(6, 1, 300, dtype=dtype)},
        "options": {"window": (100, 1), "softcap": 2.0, "alibi_slopes": slopes(6), "sinks": sinks(6)},
    }[given]
    return selfattn.paged_attention(
        query, keys, values, tables, lengths, **how, return_lse=True, num_threads=THREADS
    )


def paged() -> Iterator[Case]:
    for given in ("plain", "bottom_right", "mask_and_bias", "options"):
        for page_size in (1, 7, 16, 40, 200):
            name = f"paged/float32/{given}/page_size={page_size}"
            yield name, partial(from_pages, name, np.float32, page_size, given, 1 + page_size % 3)
        for dtype in ("float64", "float16", "bfloat16"):
            name = f"paged/{dtype}/{given}"
            yield name, partial(from_pages, name, DTYPES[dtype], 16, given, 5)


def cached(name: str, dtype: Any, dim: int, given: str, prompt: int) -> object:
    """A prompt, then a few tokens one by one; sequences of different lengths."""
    n = Numbers(name)
    kv = selfattn.KVCache(2, 2, dim, value_dim=dim + 8, capacity=prompt + 8, dtype=dtype)
    own = np.float32 if np.dtype(dtype) == np.int8 else dtype
    how: dict[str, Any] = {
        "plain": {},
        "window": {"window": (50, 0)},
        "options": {"softcap": 2.0, "alibi_slopes": slopes(6), "sinks": sinks(6), "scale": 0.25},
        "precision=bfloat16": {"precision": "bfloat16"},
    }[given]
    results = []
    for new in (prompt, 1, 1, 3):
        key = n.normal(2, 2, new, dim)
        kv.append(key, n.normal(2, 2, new, dim + 8), None if new == 1 else [new, new // 2])
        query = n.normal(2, 6, min(new, 9), dim, dtype=own)
        results.append(kv.attention(query, **how, return_lse=True, num_threads=THREADS))
    return results, kv.key, kv.value, kv.key_scale, kv.value_scale


def cache() -> Iterator[Case]:
    for dtype, kind in (DTYPES | {"int8": np.int8}).items():
        for given in ("plain", "window", "options"):
            for dim, prompt in ((24, 40), (64, 300), (128, 150), (40, 2000)):
                if given == "plain" or dim == 64:
                    name = f"cache/{dtype}/{given}/{prompt}x{dim}"
                    yield name, partial(cached, name, kind, dim, given, prompt)
    name = "cache/precision=bfloat16/plain"
    yield name, partial(cached, name, np.float32, 64, "precision=bfloat16", 300)


# ---- what stands beside the operator ----


def merged(name: str, dtype: Any) -> object:
    n = Numbers(name)
    query, key, value = qkv(n, MIDDLE, dtype)
    parts = [
        selfattn.attention(query, key[:, :, part], value[:, :, part], return_lse=True, num_threads=THREADS)
        for part in (slice(0, 100), slice(100, 101), slice(101, 330))
    ]
    return selfattn.merge_attention(*zip(*parts, strict=True))


def others() -> Iterator[Case]:
    for dtype, kind in DTYPES.items():
        name = f"numpy/merge/{dtype}"
        yield name, partial(merged, name, kind)
    for interleaved in (False, True):
        name = f"numpy/rotary/interleaved={interleaved}"
        yield (
            name,
            lambda name=name, interleaved=interleaved: selfattn.rotary_embedding(
                Numbers(name).normal(2, 4, 50, 24), np.arange(50), rotary_dim=16, interleaved=interleaved
            ),
        )
    yield "numpy/sinusoidal", lambda: selfattn.sinusoidal_positions(60, 33)
    yield "numpy/alibi_slopes", lambda: [selfattn.alibi_slopes(heads) for heads in range(1, 20)]
