# SPDX-License-Identifier: Apache-2.0
"""Keys and values in pages."""

import numpy as np
from numpy.typing import NDArray


def in_pages(
    key: NDArray, value: NDArray, page_size: int, rng: np.random.Generator
) -> tuple[NDArray, NDArray, NDArray]:
    """(batch, heads, kv_len, dim) spread over pages in any order, among pages of NaN; and the tables."""
    batch, heads, kv_len, _ = key.shape
    max_pages = -(-kv_len // page_size)
    num_pages = batch * max_pages + 3
    tables = rng.permutation(num_pages)[: batch * max_pages].reshape(batch, max_pages)
    pools = []
    for array in (key, value):
        pool = np.full((num_pages, heads, page_size, array.shape[-1]), np.nan, array.dtype)
        for b, j in np.ndindex(batch, kv_len):
            pool[tables[b, j // page_size], :, j % page_size] = array[b, :, j]
        pools.append(pool)
    return pools[0], pools[1], tables
