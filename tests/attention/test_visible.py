# SPDX-License-Identifier: Apache-2.0
"""What is not seen of a block is not computed (csrc/seen.inc.h, rows.inc.h): the bits are those of a mask."""

from itertools import pairwise

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import qkv
from support.attention_gradients import backward, grad_like_out
from support.bits import assert_all_the_same, both

import selfattn

BLOCK = 144  # keys; a panel has 64 queries, a vector of AVX-512 16
LENGTHS = (15, 16, 17, 33, 48, 64, 65, 80, 128, BLOCK, BLOCK + 1, 300)
RANGES = {  # how it is said, and the keys before and after its own place that a query sees
    "causal": ({"causal": True}, (None, 0)),
    "window": ({"window": (21, 9)}, (21, 9)),
    "wide window": ({"window": (100, 70)}, (100, 70)),
    "causal window": ({"window": (40, 0)}, (40, 0)),
    "one key": ({"window": (0, 0)}, (0, 0)),
}
PRECISIONS = [(dtype, None) for dtype in DTYPES] + [
    (dtype, "bfloat16") for dtype in DTYPES if dtype != np.float64
]
VALUE_DIMS = (24, 32, 80)  # in part of a vector of 16; two vectors; five: of halves as three and two


def seen_by(sides, q_len, kv_len):
    """(q_len, kv_len): which keys those are; the last query stands at the last key."""
    distance = np.arange(kv_len) - (np.arange(q_len)[:, None] + kv_len - q_len)
    before, after = (kv_len if side is None else side for side in sides)
    return (distance >= -before) & (distance <= after)


def leave_nan_behind(arrays, **options):
    """What is left of this in the workspace would spoil what is read without having been written."""
    both(*(np.full_like(array, np.nan) for array in arrays), **options, num_threads=1)


@pytest.mark.parametrize("value_dim", [40, 64])
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_range_is_a_mask(isa, rng, length, name, value_dim):
    options, sides = RANGES[name]
    arrays = qkv(rng, heads=2, q_len=length, kv_len=length, dim=40, value_dim=value_dim)
    masked = both(*arrays, mask=seen_by(sides, length, length))
    leave_nan_behind(arrays)
    assert_same_bits(both(*arrays, **options, num_threads=1), masked)


@pytest.mark.parametrize("value_dim", VALUE_DIMS)
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS)
@pytest.mark.parametrize("name", RANGES)
def test_of_any_dtype(isa, rng, name, dtype, precision, value_dim):
    _, sides = RANGES[name]
    arrays = qkv(rng, heads=2, q_len=131, kv_len=209, dim=24, value_dim=value_dim)
    arrays = [array.astype(dtype) for array in arrays]
    options = {"window": sides, "softcap": 2.0, "alibi_slopes": [0.1, 0.2], "precision": precision}
    masked = both(*arrays, **options | {"window": None}, mask=seen_by(sides, 131, 209))
    leave_nan_behind(arrays, precision=precision)
    assert_same_bits(both(*arrays, **options, num_threads=1), masked)


@pytest.mark.parametrize("value_dim", VALUE_DIMS)
@pytest.mark.parametrize("spoiled_key", [110, 111])  # the first of a pair, and the second
@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("name", RANGES)
def test_nan_in_a_key_that_is_not_seen(isa, rng, name, precision, spoiled_key, value_dim):
    _, sides = RANGES[name]
    query, key, value = qkv(rng, heads=2, q_len=200, kv_len=200, dim=32, value_dim=value_dim)
    options = {"window": sides, "precision": precision}
    clean = both(query, key, value, **options)
    key[:, :, spoiled_key], value[:, :, spoiled_key] = np.nan, np.inf
    blind = ~seen_by(sides, 200, 200)[:, spoiled_key]
    assert 0 < blind.sum() < 200
    spoiled = both(query, key, value, **options, num_threads=1)
    assert_same_bits(spoiled[:, :, blind], clean[:, :, blind])
    assert np.isnan(spoiled[:, :, ~blind]).all(axis=-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RANGES)
def test_the_gradients(isa, rng, name, dtype):
    _, sides = RANGES[name]
    arrays = [array.astype(dtype) for array in qkv(rng, heads=2, q_len=150, kv_len=209, dim=24)]
    arrays = [grad_like_out(rng, *arrays), *arrays]
    options = {"softcap": 2.0, "alibi_slopes": [0.1, 0.2]}
    masked = backward(*arrays, **options, mask=seen_by(sides, 150, 209))
    leave_nan_behind(arrays[1:])
    ranged = backward(*arrays, **options, window=sides, num_threads=1)
    assert list(ranged) == list(masked)
    assert_all_the_same(tuple(ranged.values()), tuple(masked.values()))


def test_packed_sequences_of_every_length(isa, rng):
    lengths = np.arange(1, 90)
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    query, key, value = (rng.standard_normal((lengths.sum(), 2, 16)).astype(np.float32) for _ in range(3))
    packed = selfattn.varlen_attention(query, key, value, cu_seqlens, causal=True)
    for first, last in pairwise(cu_seqlens):
        one = [array[first:last].swapaxes(0, 1) for array in (query, key, value)]
        masked = selfattn.attention(*one, mask=np.tri(last - first, dtype=bool))
        assert_same_bits(packed[first:last].swapaxes(0, 1), masked)
