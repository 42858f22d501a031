"""The compiled operators; selfattn.attention and selfattn.layers are their public face."""

from typing import Any

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

MAX_LEADING: int

def active_isa() -> str: ...
def available_isas() -> list[str]: ...
def use_isa(name: str) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(num_threads: int) -> None: ...
def trim() -> None: ...
def build_info() -> dict[str, str]: ...
def plain_sizes(
    query: object, key: object, value: object
) -> tuple[tuple[int, ...], tuple[int, int, int, int, int, int]] | None: ...
def lies_apart(out: Array, inputs: tuple[Array | None, ...]) -> bool: ...
def attention(
    query: Array,
    key: Array,
    value: Array | None,
    out: Array | None,
    lse: Array | None,
    mask: Array | None,
    bias: Array | None,
    leading: tuple[int, ...],
    sizes: tuple[int, int, int, int, int, int],
    scale: float,
    causal: str | None,
    num_threads: int,
    *,
    what: str = "attention",
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    kv_lengths: Array | None = None,
    positions: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_kv: Array | None = None,
    block_tables: Array | None = None,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    bfloat16: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    uninterrupted: bool = False,
) -> None: ...
def attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    grad_query: Array | None,
    grad_key: Array | None,
    grad_value: Array | None,
    mask: Array | None,
    bias: Array | None,
    leading: tuple[int, ...],
    sizes: tuple[int, int, int, int, int, int],
    scale: float,
    causal: str | None,
    num_threads: int,
    *,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    kv_lengths: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_kv: Array | None = None,
    bfloat16: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    grad_sink_rows: Array | None = None,
    grad_alibi_rows: Array | None = None,
    grad_bias: Array | None = None,
) -> None: ...
def linear(
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    num_threads: int,
    bfloat16: bool = False,
) -> Array: ...
def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float, num_threads: int) -> Array: ...
def rms_norm(x: Array, weight: Array, eps: float, num_threads: int) -> Array: ...
def gelu(x: Array, num_threads: int = 1) -> Array: ...
def gelu_tanh(x: Array, num_threads: int = 1) -> Array: ...
def relu(x: Array, num_threads: int = 1) -> Array: ...
def silu(x: Array, num_threads: int = 1) -> Array: ...
def multiply_add(bfloat16: bool = False, iterations: int = 1000000) -> float: ...
def read_all(numbers: Array) -> float: ...
