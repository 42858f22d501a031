# SPDX-License-Identifier: Apache-2.0
"""Few queries over many keys take a road of their own (csrc/few.inc.h): none of it may show."""

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import assert_same_bits

import selfattn

HALVES = (np.float16, ml_dtypes.bfloat16)
ROWS = {
    "1 row": (1, 1, 1),
    "2 rows": (1, 2, 1),
    "3 rows": (3, 3, 3),
    "4 rows": (2, 4, 2),
    "8 rows": (2, 8, 2),
}


def arrays(rng, dtype, queries, heads, kv_heads, keys, dim, value_dim):
    shapes = [(heads, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, value_dim)]
    return [rng.standard_normal(shape, dtype=np.float32).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("value_dim", [16, 32, 48, 72, 128, 144, 160, 288])
def test_values_in_half_precision_are_those_they_widen_to(isa, rng, dtype, rows, value_dim):
    """Whole tiles, pairs of vectors, tails; a block's chain at once, or in parts."""
    for keys in (1, 47, 49, 144, 301):
        given = arrays(rng, dtype, *ROWS[rows], keys, 40, value_dim)
        widened = (array.astype(np.float32) for array in given)
        assert_same_bits(selfattn.attention(*given), selfattn.attention(*widened).astype(dtype))


@pytest.mark.parametrize("dim", [16, 40, 96, 256])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_caches_too_large_for_the_processors_are_fetched_otherwise(isa, rng, dtype, dim):
    """All heads at once come from memory, one at a time do not."""
    keys = -(-(3 << 20) // (2 * dim * np.dtype(dtype).itemsize * 8))
    query, key, value = arrays(rng, dtype, 1, 16, 8, keys, dim, dim)
    each = [selfattn.attention(query[2 * h : 2 * h + 2], key[h : h + 1], value[h : h + 1]) for h in range(8)]
    assert_same_bits(selfattn.attention(query, key, value), np.concatenate(each))
