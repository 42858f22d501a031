# SPDX-License-Identifier: Apache-2.0
"""attention_column_sums: the weights summed over the queries, without the weights."""

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_as_exact_as_numpy, assert_same_bits, exactly
from support.arrays import LAYOUTS, qkv

import selfattn
from selfattn import reference

OPTIONS = {
    "no option": {},
    "mask": {"mask": np.tri(19, 50, 7, dtype=bool)},
    "bias": {"bias": np.linspace(-3, 3, 50, dtype=np.float32)},
    "bottom right": {"causal": "bottom_right"},
    "window": {"window": (12, 3), "causal": "top_left"},
    "lengths": {"kv_lengths": np.array([17, 0])},
    "lengths and causal": {"kv_lengths": np.array([17, 50]), "causal": "bottom_right"},
    "scale": {"scale": -2.0},
    "softcap": {"softcap": 0.7},
    "alibi": {"alibi_slopes": np.array([1, 0.5, 0.25, 0.125])},
    "sinks": {"sinks": np.array([0.0, 5.0, -2.0, -np.inf])},
}

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_reference(rng, dtype, options):
    query, key, _ = (array.astype(dtype) for array in qkv(rng, heads=4, kv_heads=2, q_len=19, kv_len=50))
    sums = selfattn.attention_column_sums(query, key, **options)
    assert sums.dtype == (np.float64 if query.dtype == np.float64 else np.float32)
    naive = reference.attention_column_sums(query, key, **options)
    assert_as_exact_as_numpy(sums, naive, exactly(reference.attention_column_sums, query, key, **options))


@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 1), (1, 300), (300, 1), (67, 193), (500, 420), (5, 0), (0, 5)]
)
def test_every_length(rng, q_len, kv_len):
    query, key, _ = qkv(rng, batch=3, q_len=q_len, kv_len=kv_len, dim=20)
    sums = selfattn.attention_column_sums(query, key)
    assert sums.shape == (3, 2, kv_len)
    naive = reference.attention_column_sums(query, key)
    assert_as_exact_as_numpy(sums, naive, exactly(reference.attention_column_sums, query, key))


@pytest.mark.parametrize(
    ("query_lead", "key_lead"), [((), ()), ((3,), (1,)), ((), (4,)), ((2, 1), (3,)), ((0,), (0,))]
)
def test_leading_dimensions_broadcast(rng, query_lead, key_lead):
    query = rng.standard_normal((*query_lead, 4, 9, 16)).astype(np.float32)
    key = rng.standard_normal((*key_lead, 2, 13, 16)).astype(np.float32)
    sums = selfattn.attention_column_sums(query, key)
    assert sums.shape == (*np.broadcast_shapes(query_lead, key_lead), 4, 13)
    naive = reference.attention_column_sums(query, key)
    assert_as_exact_as_numpy(sums, naive, exactly(reference.attention_column_sums, query, key))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(rng, layout):
    query, key, _ = qkv(rng, q_len=19, kv_len=37, dim=20)
    expected = selfattn.attention_column_sums(query, key)
    laid_out = (LAYOUTS[layout](array) for array in (query, key))
    assert_same_bits(selfattn.attention_column_sums(*laid_out), expected)


@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_the_number_of_threads_does_not_show(rng, num_threads):
    query, key, _ = qkv(rng, heads=4, kv_heads=1, q_len=331, kv_len=290)
    expected = selfattn.attention_column_sums(query, key, causal="bottom_right", num_threads=1)
    actual = selfattn.attention_column_sums(query, key, causal="bottom_right", num_threads=num_threads)
    assert_same_bits(actual, expected)


def test_they_add_up_to_the_queries(rng):
    query, key, _ = qkv(rng, q_len=120, kv_len=77)
    np.testing.assert_allclose(selfattn.attention_column_sums(query, key).sum(axis=-1), 120, rtol=1e-6)


def test_sums_beyond_the_range_of_float16():
    query, key = np.zeros((1, 70_000, 1), np.float16), np.zeros((1, 1, 1), np.float16)
    np.testing.assert_array_equal(selfattn.attention_column_sums(query, key), np.float32(70_000))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nothing_behind_a_mask_reaches_the_sums(rng, poison):
    query, key, _ = qkv(rng, q_len=20, kv_len=50)
    mask = np.arange(50) // 10 != 3
    expected = selfattn.attention_column_sums(query, key, mask=mask)
    assert not expected[..., ~mask].any()
    key[:, :, 30:40] = poison
    assert_same_bits(selfattn.attention_column_sums(query, key, mask=mask), expected)


def test_a_nan_reaches_the_keys_that_its_query_sees_and_no_other(rng):
    query, key, _ = qkv(rng, q_len=20)
    expected = selfattn.attention_column_sums(query, key, causal=True)
    query[:, :, 7] = np.nan
    sums = selfattn.attention_column_sums(query, key, causal=True)
    assert np.isnan(sums[..., :8]).all()
    assert_same_bits(sums[..., 8:], expected[..., 8:])
