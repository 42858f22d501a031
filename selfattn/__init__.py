"""selfattn: exact self-attention on the CPU, from Python, on NumPy arrays.

The operator: attention, attention_weights. Positions: sinusoidal_positions, rotary_embedding, alibi_slopes.
The cell, cells side by side, and in depth: SelfAttentionCell, MultiHeadSelfAttention, EncoderLayer, Encoder.
Text: TextEncoder. The runtime: threads, set_num_threads, get_num_threads, available_isas, active_isa, trim.
The specification of all of it, in plain NumPy: selfattn.reference.
"""

import os as _os
from typing import TYPE_CHECKING, Any

from selfattn import _kernels

_isa = _os.environ.get("SELFATTN_ISA", "")
if _isa:
    try:
        _kernels.use_isa(_isa)
    except ValueError as error:
        raise ImportError(f"SELFATTN_ISA: {error}") from None

from selfattn.attention import attention, attention_weights  # noqa: E402
from selfattn.layers import (  # noqa: E402
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    MultiHeadSelfAttention,
    RMSNorm,
    SelfAttentionCell,
)
from selfattn.positions import alibi_slopes, rotary_embedding, sinusoidal_positions  # noqa: E402
from selfattn.runtime import (  # noqa: E402
    active_isa,
    available_isas,
    get_num_threads,
    set_num_threads,
    threads,
    trim,
)

if TYPE_CHECKING:
    from selfattn import reference as reference
    from selfattn.text import TextEncoder as TextEncoder
    from selfattn.view import AttentionMap as AttentionMap

__version__ = "0.1.0"
__all__ = [
    "AttentionMap",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "LayerNorm",
    "MultiHeadSelfAttention",
    "RMSNorm",
    "SelfAttentionCell",
    "TextEncoder",
    "active_isa",
    "alibi_slopes",
    "attention",
    "attention_weights",
    "available_isas",
    "get_num_threads",
    "reference",
    "rotary_embedding",
    "set_num_threads",
    "sinusoidal_positions",
    "threads",
    "trim",
]

_LATER = {"TextEncoder": "selfattn.text", "AttentionMap": "selfattn.view", "reference": "selfattn.reference"}


def __getattr__(name: str) -> Any:
    """Text models and pictures are imported when used: `import selfattn` loads NumPy and the kernels."""
    if name not in _LATER:
        raise AttributeError(f"module 'selfattn' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LATER[name])
    return module if name == "reference" else getattr(module, name)
