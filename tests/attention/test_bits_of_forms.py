# SPDX-License-Identifier: Apache-2.0
"""One answer in every form, packed, paged, cached, weights, column sums; and for products of bfloat16."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import qkv
from support.bits import HEADS, OPTIONS, assert_all_the_same, both, on_every_isa_with_fma, with_masks
from support.caches import whole_arrays
from support.forms import FORMS
from support.pages import in_pages
from support.strategies import using

import selfattn

LENGTHS = np.array([211, 1, 144, 0, 290])
SIZES = {"batch": 5, "q_len": 23, "kv_len": 290, "dim": 33, "value_dim": 48}
THREADS = (1, 2, 3, 8)


def inputs(rng, dtype, **sizes):
    return [array.astype(dtype) for array in qkv(rng, **(HEADS | SIZES | sizes))]


def check_everywhere(compute):
    """compute(num_threads) gives one answer on every instruction set with FMA; baseline has its own."""

    def on_threads():
        results = [compute(n) for n in THREADS]
        assert_all_the_same(*results)
        return results[0]

    assert_all_the_same(*on_every_isa_with_fma(on_threads))
    with using("baseline"):
        on_threads()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_forms(rng, form, name, dtype):
    arrays = inputs(rng, dtype)
    options = {"causal": "bottom_right"} | OPTIONS[name]
    check_everywhere(lambda n: FORMS[form](*arrays, LENGTHS, **options, num_threads=n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_each_item_of_every_form_alone(isa, rng, name, dtype):
    query, key, value = inputs(rng, dtype)
    options = {"causal": "bottom_right"} | OPTIONS[name]
    results = [form(query, key, value, LENGTHS, **options) for form in FORMS.values()]
    assert_all_the_same(*results)
    for item, length in enumerate(LENGTHS):
        seen = np.s_[item : item + 1, :, :length]
        one = query[item : item + 1], key[seen], value[seen]
        out, lse = selfattn.attention(*one, **options, return_lse=True)
        assert_all_the_same((out[0], lse[0]), (results[0][0][item], results[0][1][item]))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_cache_of_int8(rng, name):
    query, key, value = inputs(rng, np.float32)
    cache = selfattn.KVCache(5, 2, 33, value_dim=SIZES["value_dim"], capacity=300, dtype=np.int8)
    cache.append(key, value, LENGTHS)
    options = OPTIONS[name] | {"return_lse": True}
    check_everywhere(lambda n: cache.attention(query, **options, num_threads=n))
    expected = selfattn.attention(
        query, *whole_arrays(cache), causal="bottom_right", kv_lengths=LENGTHS, **options
    )
    assert_all_the_same(expected, cache.attention(query, **options))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_token_decoded_over_int8(isa, rng, name):
    """Each token has its own scale: what comes after it does not change what it is rounded to."""
    query, key, value = inputs(rng, np.float32, batch=1, q_len=150, kv_len=150)
    prompt, cache = (
        selfattn.KVCache(1, 2, 33, value_dim=SIZES["value_dim"], capacity=150, dtype=np.int8)
        for _ in range(2)
    )
    prompt.append(key, value)
    expected = prompt.attention(query, **OPTIONS[name], return_lse=True)
    for first, last in itertools.pairwise((0, 1, 2, 63, 64, 143, 144, 145, 150)):
        new = np.s_[:, :, first:last]
        cache.append(key[new], value[new])
        decoded = cache.attention(query[new], **OPTIONS[name], return_lse=True)
        assert_all_the_same(decoded, (expected[0][new], expected[1][new]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_and_column_sums(rng, name, dtype):
    query, key, _ = inputs(rng, dtype)
    options = with_masks(rng, OPTIONS[name], 23, 290, dtype) | {"kv_lengths": LENGTHS}
    rows = [22, 0, 7, 7]

    def compute(num_threads):
        threads = {"num_threads": num_threads}
        weights = selfattn.attention_weights(query, key, **options, **threads)
        chosen = selfattn.attention_weights(query, key, **options, **threads, rows=rows)
        assert_same_bits(chosen, weights[:, :, rows])
        return weights, selfattn.attention_column_sums(query, key, **options, **threads)

    check_everywhere(compute)


# ---- products of bfloat16: of pairs, whose partners must not show either ----

BFLOAT16 = {"precision": "bfloat16"}
PAIRED = (np.float32, np.float16, ml_dtypes.bfloat16)
ODD_WINDOWS = [(0, 0), (1, 0), (2, 1), (60, 0), (61, 0), (144, 3), (None, 1), (145, None)]


@pytest.mark.parametrize("dtype", PAIRED)
@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_on_any_number_of_threads_and_in_any_batch(isa, rng, name, dtype):
    query, key, value = inputs(rng, dtype, kv_len=1801)
    options = with_masks(rng, OPTIONS[name], 23, 1801, dtype) | BFLOAT16
    together, *others = [both(query, key, value, **options, num_threads=n) for n in THREADS]
    assert_all_the_same(together, *others)
    for item in range(5):
        assert_same_bits(both(query[item], key[item], value[item], **options), together[item])
    assert_same_bits(both(query[::-1], key[::-1], value[::-1], **options)[::-1], together)


@pytest.mark.parametrize("dtype", PAIRED)
@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_of_a_decoded_token(isa, rng, name, dtype):
    query, key, value = inputs(rng, dtype, batch=2, q_len=290)
    options = OPTIONS[name] | BFLOAT16
    prompt = both(query, key, value, causal=True, **options)
    for row in (0, 1, 2, 61, 62, 63, 142, 143, 144, 145, 205, 206, 288, 289):
        now, seen = np.s_[:, :, row : row + 1], np.s_[:, :, : row + 1]
        step = both(query[now], key[seen], value[seen], causal="bottom_right", **options)
        assert_same_bits(step, prompt[now])


@pytest.mark.parametrize("dtype", PAIRED)
@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_in_every_form(isa, rng, name, dtype):
    """Behind the odd lengths lies NaN: the partner of the last key."""
    query, key, value = inputs(rng, dtype)
    options = {"causal": "bottom_right"} | OPTIONS[name] | BFLOAT16
    lengths = np.array([211, 1, 145, 0, 289])
    results = [form(query, key, value, lengths, **options) for form in FORMS.values()]
    assert not any(np.isnan(result.astype(np.float32)).any() for result in results[0])
    assert_all_the_same(*results)


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_weights_and_column_sums(isa, rng, name):
    query, key, _ = inputs(rng, np.float32)
    options = with_masks(rng, OPTIONS[name], 23, 290, np.float32) | {"kv_lengths": LENGTHS} | BFLOAT16
    weights = selfattn.attention_weights(query, key, **options)
    rows = [22, 0, 7, 7]
    assert_same_bits(selfattn.attention_weights(query, key, **options, rows=rows), weights[:, :, rows])
    total = np.zeros((5, 6, 290))
    for row in range(23):
        total += weights[:, :, row]
    sums = [selfattn.attention_column_sums(query, key, **options, num_threads=n) for n in THREADS]
    assert_all_the_same(total.astype(np.float32), *sums)


@pytest.mark.parametrize("dtype", PAIRED)
@pytest.mark.parametrize("window", ODD_WINDOWS, ids=str)
def test_bfloat16_in_windows_that_begin_anywhere(isa, rng, window, dtype):
    """In a tile as for the row alone, and as with a mask of the same keys."""
    query, key, value = inputs(rng, dtype, batch=1, q_len=161)
    whole = both(query, key, value, window=window, **BFLOAT16)
    mask = seen_in(window, 161, 290)
    assert_same_bits(both(query, key, value, mask=mask, **BFLOAT16), whole)
    for row in (0, 1, 14, 15, 16, 80, 159, 160):
        one, last = np.s_[:, :, row : row + 1], row + 130
        assert_same_bits(both(query[one], key, value, mask=mask[row], **BFLOAT16), whole[one])
        if window[1] == 0:
            cut = key[:, :, :last], value[:, :, :last]
            assert_same_bits(both(query[one], *cut, window=window, **BFLOAT16), whole[one])


@pytest.mark.parametrize("window", ODD_WINDOWS, ids=str)
def test_bfloat16_beside_nan(isa, rng, window):
    """A key that no query may see can be the partner of one that all see."""
    query, key, value = inputs(rng, np.float32, batch=1, q_len=161)
    whole = both(query, key, value, window=window, **BFLOAT16)
    mask = seen_in(window, 161, 290)
    for row in (0, 1, 14, 15, 16, 80, 159, 160):
        one = np.s_[:, :, row : row + 1]
        spoiled = [np.where(mask[row][:, None], array, np.float32(np.nan)) for array in (key, value)]
        assert_same_bits(both(query[one], *spoiled, mask=mask[row], **BFLOAT16), whole[one])


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (3, 0)}, {"window": (None, 0)}], ids=str)
def test_bfloat16_beside_nan_in_tiles_of_one_position(isa, rng, options):
    """64 heads of a query fill a panel, which ends at an odd key whose partner other panels see."""
    query, key, value = inputs(rng, np.float32, batch=1, heads=64, kv_heads=1, q_len=8, kv_len=8)
    clean = both(query, key, value, **options, **BFLOAT16, num_threads=1)
    seen = seen_in(options.get("window", (None, 0)), 8, 8)
    for j in range(8):
        spoiled = [
            np.where((np.arange(8) == j)[:, None], np.float32(np.nan), array) for array in (key, value)
        ]
        out = both(query, *spoiled, **options, **BFLOAT16, num_threads=1)
        assert_same_bits(out[:, :, ~seen[:, j]], clean[:, :, ~seen[:, j]])
        assert np.isnan(out[:, :, seen[:, j]]).all()


@pytest.mark.parametrize("kv_len", [1, 2, 37, 143, 145])
def test_bfloat16_of_an_infinite_value(isa, rng, kv_len):
    """Without a mask every row has it, also where the last key has no partner."""
    query, key, value = inputs(rng, np.float32, batch=1, kv_len=kv_len)
    clean = both(query, key, value, **BFLOAT16)
    value[..., -1, 3] = np.inf
    out = both(query, key, value, **BFLOAT16)
    assert not np.isfinite(out[..., 3]).any()
    assert_same_bits(np.delete(out, 3, axis=-1), np.delete(clean, 3, axis=-1))


def seen_in(window, q_len, kv_len):
    """(q_len, kv_len): the last query stands at the last key."""
    distance = np.arange(kv_len) - (np.arange(q_len)[:, None] + kv_len - q_len)
    left, right = (kv_len if side is None else side for side in window)
    return (distance >= -left) & (distance <= right)


@pytest.mark.parametrize("first", [0, 1, 3, 7])
def test_bfloat16_in_pages_of_any_size(isa, rng, first):
    query, key, value = inputs(rng, np.float32, batch=2, kv_len=201)
    options = {"window": (50 + first, 0), "causal": "bottom_right"} | BFLOAT16
    expected = selfattn.attention(query, key, value, **options)
    for page_size in (1, 3, 16, 143, 300):
        pages = in_pages(key, value, page_size, rng)
        assert_same_bits(selfattn.paged_attention(query, *pages, [201, 201], **options), expected)
