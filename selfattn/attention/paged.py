# SPDX-License-Identifier: Apache-2.0
"""Attention over keys and values that lie in pages, as a server of many growing sequences keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integers, as_lengths
from selfattn._native import operator as _operator
from selfattn.attention.arrays import Array, Sizes, arithmetic, finish, operands, require_heads, target
from selfattn.attention.options import Lengths, Problem, accepted_by, checked, no_options
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import ScoreOptions

_PAGED = accepted_by("paged_attention", without=("kv_lengths", "dropout", "seed"))


def paged_attention(
    query: AnyArray,
    key_pages: AnyArray,
    value_pages: AnyArray,
    block_tables: npt.ArrayLike,
    kv_lengths: npt.ArrayLike,
    *,
    return_lse: bool = False,
    out: AnyArray | None = None,
    num_threads: int | None = None,
    **options: Unpack[ScoreOptions],
) -> Any:
    """`attention` over keys and values that lie in pages, read in place: the same bits as side by side.

    Key j of item b is key_pages[block_tables[b, j // page_size], :, j % page_size], as in "Efficient Memory
    Management for Large Language Model Serving with PagedAttention" (Kwon et al., 2023), section 4.1. Pages
    may be of any size, lie in any order, and be shared.

    Args:
        query: (batch, num_heads, q_len, head_dim), float32, float64, float16 or bfloat16, any strides.
        key_pages: (num_pages, num_kv_heads, page_size, head_dim) of the same dtype.
        value_pages: (num_pages, num_kv_heads, page_size, value_dim) of the same dtype.
        block_tables: (batch, max_pages) integers; entries beyond an item's last page are not looked at.
        kv_lengths: (batch,) integers: the kv_len of each item. Where positions count, its last query stands
            at its last key; with causal=True and "top_left" its first at its first.
        mask, bias: broadcast to (batch, num_heads, q_len, max(kv_lengths)).
        causal: as in `attention`; True needs kv_lengths of q_len.
        window, scale, softcap, alibi_slopes, sinks, precision, return_lse, out, num_threads: as there.

    Returns:
        (batch, num_heads, q_len, value_dim) in the query's dtype; with return_lse also lse, (batch,
        num_heads, q_len).

    Raises:
        TypeError, ValueError: as `attention`; block_tables with a used entry that is no page, naming it.
    """
    _PAGED.refuse_others(options)
    names = ("query", "key_pages", "value_pages")
    query, key_pages, value_pages = operands(query, key_pages, value_pages, names=names)
    _require_pages(query, key_pages, value_pages)
    lengths, tables = _lengths_and_tables(kv_lengths, block_tables, len(query), key_pages)
    batch, num_heads, q_len, head_dim = query.shape
    kv_len, value_dim = int(lengths.max(initial=0)), value_pages.shape[-1]
    sizes: Sizes = (num_heads, key_pages.shape[1], q_len, kv_len, head_dim, value_dim)
    problem = Problem(query.dtype, (batch,), sizes, kv_lens=lengths)
    record = (checked(problem, **options) if options else no_options(sizes[4]))._replace(
        kv_lengths=Lengths(lengths)
    )
    threads = resolve_num_threads(num_threads)
    result = target(out, (batch, num_heads, q_len, value_dim), query.dtype)
    lse = np.empty(result.shape[:-1], arithmetic(query.dtype)) if return_lse else None
    _operator.attention(
        query,
        key_pages,
        value_pages,
        result,
        lse,
        problem.leading,
        sizes,
        record,
        threads,
        block_tables=tables,
    )
    finished = finish(result, out)
    return (finished, lse) if return_lse else finished


def _require_pages(query: Array, key_pages: Array, value_pages: Array) -> None:
    if query.ndim != 4:
        raise ValueError(f"query has shape {query.shape}; it must be (batch, num_heads, q_len, head_dim)")
    for name, pages in (("key_pages", key_pages), ("value_pages", value_pages)):
        if pages.ndim != 4:
            raise ValueError(
                f"{name} has shape {pages.shape}; it must be (num_pages, num_kv_heads, page_size, dim)"
            )
    if key_pages.shape[:3] != value_pages.shape[:3]:
        raise ValueError(
            f"key_pages has shape {key_pages.shape} and value_pages {value_pages.shape}; "
            "num_pages, num_kv_heads and page_size must be equal"
        )
    if key_pages.shape[2] == 0:
        raise ValueError("page_size=0: a page needs room for at least 1 key")
    if query.shape[-1] != key_pages.shape[-1]:
        raise ValueError(
            f"query has head_dim={query.shape[-1]} and key_pages has head_dim={key_pages.shape[-1]}; "
            "they must be equal"
        )
    if query.shape[-1] == 0:
        raise ValueError("head_dim=0: query and key_pages need at least 1 value per head")
    require_heads(query.shape[1], key_pages.shape[1])


def _lengths_and_tables(
    kv_lengths: npt.ArrayLike, block_tables: npt.ArrayLike, batch: int, key_pages: Array
) -> tuple[Array, Array]:
    """Both checked and copied: (batch,) and (batch, max_pages)."""
    num_pages, _, page_size, _ = key_pages.shape
    tables = as_integers("block_tables", block_tables)
    if tables.ndim != 2 or len(tables) != batch:
        raise ValueError(f"block_tables has shape {tables.shape}; it must be (batch={batch}, max_pages)")
    max_pages = tables.shape[1]
    lengths = as_lengths("kv_lengths", kv_lengths, batch, max_pages * page_size, "max_pages * page_size")
    used = np.arange(max_pages) * page_size < lengths[:, None]  # (batch, max_pages)
    wrong = np.argwhere(used & ((tables < 0) | (tables >= num_pages)))
    if wrong.size:
        item, entry = wrong[0]
        raise ValueError(
            f"block_tables[{item}, {entry}]={tables[item, entry]} must be between 0 and num_pages - 1 = "
            f"{num_pages - 1}; item {item} has {lengths[item]} keys in pages of {page_size}"
        )
    return lengths, tables
