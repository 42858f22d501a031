# SPDX-License-Identifier: Apache-2.0
"""The decode suite: a few new queries attend to every key of a long cache, so memory is what it waits for.

Its bytes are those of the keys and values, once: with grouped heads too, whoever reads them again does more
than is needed. A call attends to another copy of them than the call before, as in a model whose layers each
have a cache of their own, so that no processor cache holds what is next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle
from typing import Any

import numpy as np

from selfattn.bench import machine, peers
from selfattn.bench.peers import Call, UnsupportedError, Variants
from selfattn.bench.workloads import Array, bfloat16, max_error

MAX_COPIES = 64  # of small caches, which lie in a processor cache whatever is done


@dataclass(frozen=True)
class DecodeWorkload:
    """softmax(Q K^T / sqrt(d)) V without a mask, on arrays of N(0, 1); `dtype` is that of keys and values."""

    batch: int
    heads: int
    kv_heads: int
    kv_length: int
    head_dim: int
    queries: int = 1
    dtype: str = "float32"

    kind = "decode"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"shape {self.name}: {self.heads} heads are no multiple of {self.kv_heads} kv_heads"
            )

    @property
    def name(self) -> str:
        return "x".join(map(str, (self.batch, self.heads, self.kv_heads, self.kv_length, self.head_dim)))

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.heads * self.queries * self.kv_length * self.head_dim

    @property
    def bytes(self) -> int:
        """Of K and V, once; the scales of int8 not counted."""
        item = {"float32": 4, "bfloat16": 2, "int8": 1}[self.dtype]
        return 2 * self.batch * self.kv_heads * self.kv_length * self.head_dim * item

    @property
    def copies(self) -> int:
        return min(MAX_COPIES, -(-machine.READ_BYTES // self.bytes))

    @property
    def query_dtype(self) -> np.dtype[Any]:
        return bfloat16() if self.dtype == "bfloat16" else np.dtype(np.float32)

    @cached_property
    def arrays(self) -> tuple[Array, Array, Array]:
        """query (batch, heads, queries, head_dim), key and value (batch, kv_heads, kv_length, head_dim)."""
        rng = np.random.default_rng(22)
        rows = ((self.heads, self.queries), (self.kv_heads, self.kv_length), (self.kv_heads, self.kv_length))
        shapes = [(self.batch, *pair, self.head_dim) for pair in rows]
        query, key, value = (
            rng.standard_normal(shape, dtype=np.float32).astype(self.query_dtype, copy=False)
            for shape in shapes
        )
        return query, key, value

    @cached_property
    def caches(self) -> list[tuple[Array, Array]]:
        """Copies of key and value, the same numbers at other addresses."""
        _, key, value = self.arrays
        return [(key.copy(), value.copy()) for _ in range(self.copies)]

    def rows(self, query: Array) -> Array:
        """(batch, kv_heads, group * queries, head_dim): the queries that share a key head, in one matrix."""
        return query.reshape(self.batch, self.kv_heads, -1, self.head_dim)

    @cached_property
    def expected(self) -> Array:
        """The specification in float64 on what the cache holds, (batch, heads, queries, head_dim)."""
        from selfattn import reference

        query, *stored = self.arrays
        key, value = map(quantised, stored) if self.dtype == "int8" else stored
        out = np.empty(self.rows(query).shape)
        for index in np.ndindex(self.batch, self.kv_heads):
            one = (x[index][None].astype(np.float64) for x in (self.rows(query), key, value))
            out[index] = reference.attention(*one)[0]
        return out.reshape(query.shape)

    @cached_property
    def tolerance(self) -> float:
        """As the operator's; in bfloat16 two units in the last place of the largest result."""
        return 2.0**-7 * float(np.abs(self.expected).max()) if self.dtype == "bfloat16" else 1e-5

    def error(self, result: Array) -> float:
        """Largest absolute difference to the expected values, from either form of the result."""
        whole = result.reshape(self.expected.shape) if result.size == self.expected.size else result
        return max_error(whole.astype(np.float64), self.expected)


def decode_workload(shape: str, queries: int, dtype: str) -> DecodeWorkload:
    batch, heads, kv_heads, kv_length, head_dim = map(int, shape.split("x"))
    return DecodeWorkload(batch, heads, kv_heads, kv_length, head_dim, queries, dtype)


def quantised(x: Array) -> Array:
    """What an int8 cache keeps of float32 numbers: 127 steps either way, up to the largest of each token."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    kept: Array = np.rint(x / scale) * scale
    return kept


def in_turn(calls: Iterable[Call]) -> Call:
    """A call that is the next of the calls, from the first again after the last."""
    turn = cycle(calls)
    return lambda: next(turn)()


# ---- the contenders; peers.py says what one is ----


def selfattn_variants(workload: DecodeWorkload, threads: int) -> Variants:
    import selfattn

    query, key, value = workload.arrays
    how: dict[str, Any] = {"out": np.empty_like(query), "num_threads": threads}

    def arrays() -> Call:
        return in_turn([partial(selfattn.attention, query, *pair, **how) for pair in workload.caches])

    def caches() -> Call:
        sizes = (workload.batch, workload.kv_heads, workload.head_dim)
        dtype = query.dtype if workload.dtype == "bfloat16" else np.dtype(workload.dtype)
        each = [
            selfattn.KVCache(*sizes, capacity=workload.kv_length, dtype=dtype) for _ in range(workload.copies)
        ]
        for cache in each:
            cache.append(key, value)
        return in_turn([partial(cache.attention, query, causal=False, **how) for cache in each])

    return {"attention": arrays} if workload.dtype == "float32" else {"KVCache": caches}


def only(workload: DecodeWorkload, *dtypes: str) -> None:
    if workload.dtype not in dtypes:
        raise UnsupportedError(f"there is no {workload.dtype} cache for it")


def numpy_variants(workload: DecodeWorkload, threads: int) -> Variants:
    only(workload, "float32")
    peers.limit_numpy(threads)
    query = workload.rows(workload.arrays[0]) * np.float32(workload.head_dim**-0.5)

    def attend(key: Array, value: Array) -> Array:
        return peers.weighted_sum(query @ key.swapaxes(-1, -2), value)

    return {"matmul": lambda: in_turn([partial(attend, *pair) for pair in workload.caches])}


def torch_variants(workload: DecodeWorkload, threads: int) -> Variants:
    only(workload, "float32", "bfloat16")
    import torch

    torch.set_num_threads(threads)

    def tensor(array: Array) -> Any:
        same_bits = array.view(np.int16) if workload.dtype == "bfloat16" else array
        return torch.from_numpy(same_bits).view(getattr(torch, workload.dtype))

    def build(query: Any, grouped: bool) -> Call:
        def attend(key: Any, value: Any) -> Array:
            with torch.inference_mode():
                attention = torch.nn.functional.scaled_dot_product_attention
                return peers.array_of(attention(query, key, value, enable_gqa=grouped))

        return in_turn([partial(attend, *map(tensor, pair)) for pair in workload.caches])

    query = workload.arrays[0]
    return {
        "scaled_dot_product_attention, enable_gqa": lambda: build(tensor(query), True),
        "scaled_dot_product_attention, heads as rows": lambda: build(tensor(workload.rows(query)), False),
    }


def onnxruntime_variants(workload: DecodeWorkload, threads: int) -> Variants:
    only(workload, "float32")
    import onnx  # noqa: F401  both must be there before the variant is built
    import onnxruntime  # noqa: F401

    def build(query: Array) -> Call:
        key, value = workload.arrays[1:]
        session = peers.attention_session([query.shape, key.shape, value.shape, query.shape], threads)
        out = np.empty_like(query)
        return in_turn([peers.bound_call(session, (query, *pair), out) for pair in workload.caches])

    query = workload.arrays[0]
    return {
        "Attention-23": lambda: build(query),
        "Attention-23, heads as rows": lambda: build(workload.rows(query)),
    }


def openvino_variants(workload: DecodeWorkload, threads: int) -> Variants:
    only(workload, "float32")
    import openvino  # noqa: F401  must be there before the variant is built

    query, key, value = workload.rows(workload.arrays[0]), *workload.arrays[1:]

    def build() -> Call:
        model = peers.openvino_attention([query.shape, key.shape, value.shape])
        request = peers.compile_openvino(model, threads, "LATENCY").create_infer_request()

        def attend(*pair: Array) -> Array:
            result: Array = request.infer([query, *pair], share_inputs=True, share_outputs=True)[0]
            return result

        return in_turn([partial(attend, *pair) for pair in workload.caches])

    return {"heads as rows": build}


DECODE: dict[str, Callable[[DecodeWorkload, int], Variants]] = {
    "selfattn": selfattn_variants,
    "numpy": numpy_variants,
    "torch": torch_variants,
    "onnxruntime": onnxruntime_variants,
    "openvino": openvino_variants,
}
