# SPDX-License-Identifier: Apache-2.0
"""selfattn: exact self-attention on the CPU, from Python, on NumPy arrays.

The operator: attention, attention_weights, attention_column_sums. Its other forms: varlen_attention, KVCache,
paged_attention, merge_attention. Its gradients: attention_backward, varlen_attention_backward.
Positions: sinusoidal_positions, rotary_embedding, alibi_slopes.
The cell, cells side by side, and in depth: SelfAttentionCell, MultiHeadSelfAttention, EncoderLayer, Encoder.
Text: TextEncoder. The runtime: threads, set_num_threads, get_num_threads, available_isas, active_isa, trim.
Training: selfattn.train. The kernels of a layer, for any array: selfattn.functional. The specification of it
all: selfattn.reference.
"""

import os as _os
from typing import TYPE_CHECKING, Any

try:
    from selfattn._native import runtime as _runtime
except ImportError as error:
    raise ImportError(
        f"selfattn in {_os.path.dirname(__file__)} cannot load its compiled kernels ({error}). "
        "If that is a clone's source folder, build them there (python setup.py build_ext --inplace), "
        "or run from another directory, where Python finds the installed package"
    ) from error

_isa = _os.environ.get("SELFATTN_ISA", "")
if _isa:
    try:
        _runtime.use_isa(_isa)
    except ValueError as error:
        raise ImportError(f"SELFATTN_ISA: {error}") from None

from selfattn.attention import attention  # noqa: E402
from selfattn.runtime import (  # noqa: E402
    active_isa,
    available_isas,
    get_num_threads,
    set_num_threads,
    threads,
    trim,
)

if TYPE_CHECKING:
    from selfattn import functional as functional
    from selfattn import layers as layers
    from selfattn import reference as reference
    from selfattn import train as train
    from selfattn.attention import (
        KVCache,
        attention_backward,
        attention_column_sums,
        attention_weights,
        merge_attention,
        paged_attention,
        varlen_attention,
        varlen_attention_backward,
    )
    from selfattn.layers import (
        Encoder,
        EncoderLayer,
        FeedForward,
        LayerNorm,
        MultiHeadSelfAttention,
        RMSNorm,
        SelfAttentionCell,
    )
    from selfattn.layers.positions import alibi_slopes, rotary_embedding, sinusoidal_positions
    from selfattn.text import TextEncoder as TextEncoder
    from selfattn.view import AttentionMap as AttentionMap

__version__ = "0.1.0"
__all__ = [
    "AttentionMap",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "KVCache",
    "LayerNorm",
    "MultiHeadSelfAttention",
    "RMSNorm",
    "SelfAttentionCell",
    "TextEncoder",
    "active_isa",
    "alibi_slopes",
    "attention",
    "attention_backward",
    "attention_column_sums",
    "attention_weights",
    "available_isas",
    "functional",
    "get_num_threads",
    "merge_attention",
    "paged_attention",
    "reference",
    "rotary_embedding",
    "set_num_threads",
    "sinusoidal_positions",
    "threads",
    "train",
    "trim",
    "varlen_attention",
    "varlen_attention_backward",
]

_LATER_MODULES = ("functional", "layers", "reference", "train")
_LATER = {
    "AttentionMap": "view",
    "Encoder": "layers",
    "EncoderLayer": "layers",
    "FeedForward": "layers",
    "KVCache": "attention.cache",
    "LayerNorm": "layers",
    "MultiHeadSelfAttention": "layers",
    "RMSNorm": "layers",
    "SelfAttentionCell": "layers",
    "TextEncoder": "text",
    "alibi_slopes": "layers.positions",
    "attention_backward": "attention.backward",
    "attention_column_sums": "attention.weights",
    "attention_weights": "attention.weights",
    "merge_attention": "attention.merge",
    "paged_attention": "attention.paged",
    "rotary_embedding": "layers.positions",
    "sinusoidal_positions": "layers.positions",
    "varlen_attention": "attention.packed",
    "varlen_attention_backward": "attention.backward",
}  # the module that each name comes from


def __getattr__(name: str) -> Any:
    """All but `attention` and the runtime load when they are used, once."""
    from importlib import import_module

    if name in _LATER_MODULES:
        return import_module(f"selfattn.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'selfattn' has no attribute {name!r}")
    value = getattr(import_module(f"selfattn.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LATER_MODULES})
