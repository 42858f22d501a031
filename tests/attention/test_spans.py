# SPDX-License-Identifier: Apache-2.0
"""Fewer tiles than threads: spans of keys apart, merged in order, with the bits of one thread."""

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import qkv
from support.bits import OPTIONS, assert_all_the_same, both, with_masks
from support.forms import FORMS

import selfattn

SPAN = 1728
KEYS = 3 * SPAN + 100
THREADS = (1, 2, 3, 7)
ROWS = {"one tile of few rows": 1, "one tile": 9, "four tiles": 37}  # name: queries, of 6 heads each
BFLOAT16 = {"precision": "bfloat16"}


def inputs(rng, q_len, dtype=np.float32, **sizes):
    """One item and one key head: six rows a query, and work enough for seven threads."""
    shape = {"batch": 1, "heads": 6, "kv_heads": 1, "kv_len": KEYS, "dim": 70, "value_dim": 65}
    return [array.astype(dtype) for array in qkv(rng, q_len=q_len, **(shape | sizes))]


def on_any_threads(*arrays, **options):
    """The result of one thread, which all others give too."""
    results = [both(*arrays, **options, num_threads=n) for n in THREADS]
    assert_all_the_same(*results)
    return results[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("rows", ROWS)
def test_options(isa, rng, rows, name, dtype):
    arrays = inputs(rng, ROWS[rows], dtype)
    on_any_threads(*arrays, **OPTIONS[name])
    on_any_threads(*arrays, **with_masks(rng, OPTIONS[name], ROWS[rows], KEYS, dtype))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("rows", ROWS)
def test_products_of_bfloat16(isa, rng, rows, name):
    arrays = inputs(rng, ROWS[rows])
    on_any_threads(*arrays, **OPTIONS[name], **BFLOAT16)
    on_any_threads(*arrays, **with_masks(rng, OPTIONS[name], ROWS[rows], KEYS, np.float32), **BFLOAT16)


@pytest.mark.parametrize("kv_len", [SPAN, SPAN + 1, 2 * SPAN, 2 * SPAN + 145, 4 * SPAN - 1])
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
def test_where_spans_end(isa, rng, causal, kv_len):
    on_any_threads(*inputs(rng, 37, kv_len=kv_len), causal=causal)


@pytest.mark.parametrize("window", [(100, 0), (1999, 0), (4000, 3), (None, 0), (0, None)], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_windows_that_show_some_of_the_spans(isa, rng, rows, window):
    on_any_threads(*inputs(rng, ROWS[rows]), window=window)


@pytest.mark.parametrize("rows", ROWS)
def test_a_mask_of_whole_spans(isa, rng, rows):
    """The first span, one in between, the last; a head of all of them."""
    mask = np.ones((6, 1, KEYS), bool)
    mask[0, :, :SPAN] = mask[1, :, SPAN : 2 * SPAN] = mask[2, :, 3 * SPAN :] = mask[3] = False
    query, key, value = inputs(rng, ROWS[rows])
    together = on_any_threads(query, key, value, mask=mask)
    assert not together[:, 3, :, :-1].any()
    for head in range(6):
        one = slice(head, head + 1)
        alone = on_any_threads(query[:, one], key, value, mask=mask[one])
        assert_same_bits(alone, together[:, one])
    assert not on_any_threads(query, key, value, mask=np.zeros((1, KEYS), bool))[..., :-1].any()


@pytest.mark.parametrize("rows", ROWS)
def test_what_is_not_finite_stays_in_its_row(isa, rng, rows):
    query, key, value = inputs(rng, ROWS[rows])
    key[0, 0, SPAN + 3], value[0, 0, 2 * SPAN + 5], query[0, 1] = np.inf, np.nan, np.nan
    mask = rng.random((ROWS[rows], KEYS)) < 0.5
    on_any_threads(query, key, value, mask=mask)


def test_dropout(isa, rng):
    on_any_threads(*inputs(rng, 9), dropout=0.3, seed=5)


@pytest.mark.parametrize("lengths", [[KEYS - 7], [2 * SPAN], [KEYS, 0, SPAN + 1]], ids=str)
@pytest.mark.parametrize("name", ["no option", "together"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(isa, rng, form, name, lengths):
    arrays = inputs(rng, 9, batch=len(lengths), dim=33, value_dim=40)
    options = {"causal": "bottom_right"} | OPTIONS[name]
    results = [FORMS[form](*arrays, np.array(lengths), **options, num_threads=n) for n in THREADS]
    assert_all_the_same(*results)


@pytest.mark.parametrize("rows", ROWS)
def test_a_cache_of_int8(isa, rng, rows):
    query, key, value = inputs(rng, ROWS[rows])
    cache = selfattn.KVCache(1, 1, 70, value_dim=65, capacity=KEYS + 10, dtype=np.int8)
    cache.append(key, value)
    assert_all_the_same(*(cache.attention(query, return_lse=True, num_threads=n) for n in THREADS))


def test_the_last_tile_alone_is_split(isa, rng):
    """Five tiles: two threads take two each, and the spans of the fifth."""
    query, key, value = inputs(rng, 1, batch=5)
    together = on_any_threads(query, key, value)
    for item in range(5):
        assert_same_bits(on_any_threads(query[item], key[item], value[item]), together[item])
