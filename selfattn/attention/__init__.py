# SPDX-License-Identifier: Apache-2.0
"""The operator and its other forms: each takes arrays and options, checks both, and calls the kernels once.

dense.py     attention: whole arrays
weights.py   attention_weights, attention_column_sums: what attention multiplies values by
packed.py    varlen_attention: sequences side by side, without padding
paged.py     paged_attention: keys and values in pages
cache.py     KVCache: the keys and values of sequences that grow
merge.py     merge_attention: parts of the keys, put together again
backward.py  attention_backward, varlen_attention_backward
arrays.py    arrays in any form, their sizes, the target of a result
options.py   masks, the diagonal, numbers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfattn.attention.dense import attention

if TYPE_CHECKING:
    from selfattn.attention.backward import attention_backward, varlen_attention_backward
    from selfattn.attention.cache import KVCache
    from selfattn.attention.merge import merge_attention
    from selfattn.attention.packed import varlen_attention
    from selfattn.attention.paged import paged_attention
    from selfattn.attention.weights import attention_column_sums, attention_weights

__all__ = [
    "KVCache",
    "attention",
    "attention_backward",
    "attention_column_sums",
    "attention_weights",
    "merge_attention",
    "paged_attention",
    "varlen_attention",
    "varlen_attention_backward",
]

_LATER = {
    "KVCache": "cache",
    "attention_backward": "backward",
    "attention_column_sums": "weights",
    "attention_weights": "weights",
    "merge_attention": "merge",
    "paged_attention": "paged",
    "varlen_attention": "packed",
    "varlen_attention_backward": "backward",
}


def __getattr__(name: str) -> Any:
    """The forms beside `attention` load when they are used, once."""
    from importlib import import_module

    if name not in _LATER:
        raise AttributeError(f"module 'selfattn.attention' has no attribute {name!r}")
    value = getattr(import_module(f"selfattn.attention.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
