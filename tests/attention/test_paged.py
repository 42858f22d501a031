# SPDX-License-Identifier: Apache-2.0
"""paged_attention: keys and values in pages of any size give the bits that they give side by side."""

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_as_exact_as_numpy, assert_same_bits, widened
from support.arrays import LAYOUTS, qkv
from support.forms import FORMS
from support.pages import in_pages

import selfattn
from selfattn import paged_attention, reference

OPTIONS = {
    "plain": {},
    "bottom_right": {"causal": "bottom_right"},
    "top_left": {"causal": "top_left", "window": (None, 5)},
    "window": {"window": (60, 0)},
    "alibi": {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]},
    "softcap": {"softcap": 1.5, "scale": 0.3, "sinks": [0.0, 1.0, -1.0, 2.0]},
}
LENGTHS = np.array([301, 1, 0, 150])


def ragged(rng, page_size, dtype=np.float32, lengths=LENGTHS, **sizes):
    """A query, pages that hold NaN wherever no key of an item is, and the tables; and the arrays whole."""
    sizes = {"heads": 4, "kv_heads": 2, "q_len": 3, "dim": 24, "value_dim": 17} | sizes
    query, key, value = qkv(rng, batch=len(lengths), kv_len=max(lengths), **sizes)
    query, key, value = (array.astype(dtype) for array in (query, key, value))
    for b, length in enumerate(lengths):
        key[b, :, length:] = value[b, :, length:] = np.nan
    *pages, tables = in_pages(key, value, page_size, rng)
    for b, length in enumerate(lengths):
        tables[b, -(-length // page_size) :] = -1  # never looked at
    return (query, *pages, tables), (query, key, value)


def one_by_one(query, key, value, lengths=LENGTHS, **options):
    """(out, lse) of every item alone, its keys side by side."""
    items = [
        selfattn.attention(query[b], key[b, :, :n], value[b, :, :n], return_lse=True, **options)
        for b, n in enumerate(lengths)
    ]
    return [np.stack(results) for results in zip(*items, strict=True)]


def assert_all_same_bits(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        assert not np.isnan(ours.astype(np.float32)).any()
        assert_same_bits(ours, theirs)


# ---- one answer ----


@pytest.mark.parametrize("page_size", [1, 3, 16, 144, 150, 301, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_of_any_size(isa, rng, dtype, page_size):
    paged, whole = ragged(rng, page_size, dtype)
    ours = paged_attention(*paged, LENGTHS, causal="bottom_right", return_lse=True)
    assert_all_same_bits(ours, one_by_one(*whole, causal="bottom_right"))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("page_size", [7, 144])
def test_every_option(isa, rng, name, page_size):
    """Positions count from the item's own last key, causal or not."""
    paged, whole = ragged(rng, page_size)
    ours = paged_attention(*paged, LENGTHS, **OPTIONS[name], return_lse=True)
    assert_all_same_bits(ours, one_by_one(*whole, **OPTIONS[name]))


def test_mask_and_bias_have_a_column_for_each_key(isa, rng):
    paged, (query, key, value) = ragged(rng, 16)
    mask, bias = rng.random((4, 1, 3, 301)) < 0.8, rng.standard_normal((4, 1, 301)).astype(np.float32)
    out = paged_attention(*paged, LENGTHS, mask=mask, bias=bias)
    for b, length in enumerate(LENGTHS):
        some = {"mask": mask[b, ..., :length], "bias": bias[..., :length]}
        expected = selfattn.attention(query[b], key[b, :, :length], value[b, :, :length], **some)
        assert_same_bits(out[b], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_packed_cached_and_paged_are_one(isa, rng, dtype):
    arrays = [array.astype(dtype) for array in qkv(rng, batch=5, heads=4, kv_heads=2, q_len=3, kv_len=260)]
    lengths = np.array([1, 5, 144, 260, 33])
    options = {"causal": "bottom_right", "window": (150, None), "sinks": np.ones(4)}
    expected = FORMS["padded"](*arrays, lengths, **options)
    for form in FORMS.values():
        assert_all_same_bits(form(*arrays, lengths, **options), expected)


def test_a_sequence_that_grows_page_by_page_gives_the_rows_of_the_prompt(isa, rng):
    query, key, value = qkv(rng, batch=1, heads=4, kv_heads=2, q_len=40, dim=24)
    prompt = selfattn.attention(query, key, value, causal=True)
    *pages, tables = in_pages(key, value, 8, rng)
    assert_same_bits(paged_attention(query, *pages, tables, [40], causal=True), prompt)
    for row in range(40):
        step = paged_attention(query[:, :, row : row + 1], *pages, tables, [row + 1], causal="bottom_right")
        assert_same_bits(step, prompt[:, :, row : row + 1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_may_lie_anyhow(isa, rng, layout):
    (query, key_pages, value_pages, tables), whole = ragged(rng, 16)
    lay = LAYOUTS[layout]
    ours = paged_attention(lay(query), lay(key_pages), lay(value_pages), tables, LENGTHS, return_lse=True)
    assert_all_same_bits(ours, one_by_one(*whole))


def test_items_may_share_pages(isa, rng):
    """Two continuations of one prompt."""
    query, key, value = qkv(rng, batch=1, heads=2, q_len=1, kv_len=64, dim=16)
    *pages, table = in_pages(key, value, 16, rng)
    out = paged_attention(query.repeat(3, axis=0), *pages, table.repeat(3, axis=0), [64, 64, 20])
    assert_same_bits(out[0], selfattn.attention(query, key, value)[0])
    assert_same_bits(out[1], out[0])
    assert_same_bits(out[2], selfattn.attention(query, key[:, :, :20], value[:, :, :20])[0])


@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_any_number_of_threads(rng, num_threads):
    paged, whole = ragged(rng, 16, q_len=70)
    ours = paged_attention(*paged, LENGTHS, num_threads=num_threads, return_lse=True)
    assert_all_same_bits(ours, one_by_one(*whole))


@pytest.mark.parametrize("name", OPTIONS)
def test_as_exact_as_numpy(isa, rng, name):
    paged, _ = ragged(rng, 16)
    options = {**OPTIONS[name], "return_lse": True}
    ours = paged_attention(*paged, LENGTHS, **options)
    naive = reference.paged_attention(*paged, LENGTHS, **options)
    exact = reference.paged_attention(*map(widened, paged), LENGTHS, **options)
    for actual, float32, float64 in zip(ours, naive, exact, strict=True):
        assert_as_exact_as_numpy(actual, float32, float64)


# ---- what may be passed ----


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, ">i4", list])
def test_tables_and_lengths_of_any_integers(rng, dtype):
    (query, *pages, tables), whole = ragged(rng, 32, lengths=np.array([40, 64, 1]))
    tables = np.where(tables < 0, 99, tables)
    cast = np.ndarray.tolist if dtype is list else lambda array: array.astype(dtype)
    ours = paged_attention(query, *pages, cast(tables), cast(np.array([40, 64, 1])), return_lse=True)
    assert_all_same_bits(ours, one_by_one(*whole, lengths=[40, 64, 1]))


def test_out_may_be_the_query(rng):
    (query, *rest), whole = ragged(rng, 16, value_dim=24)
    expected, _ = one_by_one(*whole)
    assert paged_attention(query, *rest, LENGTHS, out=query) is query
    assert_same_bits(query, expected)


def test_nothing_to_attend_to():
    query, pages = np.ones((2, 4, 3, 8), np.float32), np.ones((0, 2, 16, 8), np.float32)
    for tables in (np.zeros((2, 0), int), np.full((2, 5), 77)):
        out, lse = paged_attention(query, pages, pages, tables, [0, 0], return_lse=True)
        np.testing.assert_array_equal(out, np.zeros((2, 4, 3, 8)))
        np.testing.assert_array_equal(lse, np.full((2, 4, 3), -np.inf))


def test_nobody_attends():
    query, pages = np.ones((2, 4, 3, 8), np.float32), np.ones((3, 2, 16, 8), np.float32)
    assert paged_attention(query[:0], pages, pages, np.zeros((0, 2), int), []).shape == (0, 4, 3, 8)
    assert paged_attention(query[:, :, :0], pages, pages, [[0], [1]], [3, 4]).shape == (2, 4, 0, 8)
    assert paged_attention(query, pages, pages[..., :0], [[0], [1]], [3, 4]).shape == (2, 4, 3, 0)


# ---- what is refused ----

QUERY, PAGES = np.ones((2, 4, 3, 8), np.float32), np.ones((5, 2, 16, 8), np.float32)
GOOD = {
    "query": QUERY,
    "key_pages": PAGES,
    "value_pages": PAGES,
    "block_tables": [[0, 1, 2], [3, 4, -1]],
    "kv_lengths": [48, 17],
}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"block_tables": [[0, 1, 2], [3, 5, -1]]},
            ValueError,
            r"block_tables\[1, 1\]=5 must be between 0 and num_pages - 1 = 4; item 1 has 17 keys",
        ),
        ({"block_tables": [[0, -1, 2], [3, 4, -1]]}, ValueError, r"block_tables\[0, 1\]=-1 .* num_pages"),
        ({"kv_lengths": [48, 33]}, ValueError, r"block_tables\[1, 2\]=-1"),
        ({"kv_lengths": [49, 17]}, ValueError, r"kv_lengths\[0\]=49 must be between 0 and .*page_size=48"),
        ({"kv_lengths": [-1, 17]}, ValueError, r"kv_lengths\[0\]=-1"),
        ({"kv_lengths": [48]}, ValueError, r"kv_lengths has shape \(1,\)"),
        ({"kv_lengths": [48.0, 17.0]}, TypeError, "kv_lengths has dtype float64"),
        ({"block_tables": [[0, 1, 2]]}, ValueError, r"block_tables has shape \(1, 3\); .*batch=2"),
        ({"block_tables": [0, 1]}, ValueError, r"block_tables has shape \(2,\)"),
        ({"block_tables": np.zeros((2, 3))}, TypeError, "block_tables has dtype float64"),
        ({"block_tables": [[0, 1, 2], [3, 4]]}, ValueError, "block_tables"),
        ({"query": QUERY[0]}, ValueError, r"query has shape \(4, 3, 8\)"),
        ({"query": QUERY[..., :7]}, ValueError, "query has head_dim=7 and key_pages has head_dim=8"),
        ({"query": QUERY[:, :3]}, ValueError, "num_heads=3 is not a multiple of num_kv_heads=2"),
        ({"query": QUERY.astype(np.float64)}, TypeError, "key_pages has dtype float32"),
        ({"query": QUERY.astype(int)}, TypeError, "query has dtype int64"),
        ({"key_pages": PAGES[0]}, ValueError, r"key_pages has shape \(2, 16, 8\)"),
        ({"value_pages": PAGES[:, :, :8]}, ValueError, r"\(5, 2, 16, 8\) and value_pages \(5, 2, 8, 8\)"),
        ({"key_pages": PAGES[:, :, :0], "value_pages": PAGES[:, :, :0]}, ValueError, "page_size=0"),
        ({"causal": True}, ValueError, "q_len=3 and kv_len=48"),
        ({"causal": True, "kv_lengths": [3, 2]}, ValueError, "q_len=3 and kv_len=2"),
        ({"mask": np.ones((3, 49), bool)}, ValueError, r"mask has shape \(3, 49\).*\(2, 4, 3, 48\)"),
        ({"sinks": [1.0]}, ValueError, "sinks has shape"),
        ({"out": np.zeros((2, 4, 3, 9), np.float32)}, ValueError, "out has shape"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_named(wrong, error, message):
    given = GOOD | wrong
    with pytest.raises(error, match=message):
        paged_attention(**given)


def test_head_dim_of_zero():
    given = GOOD | {"query": QUERY[..., :0], "key_pages": PAGES[..., :0]}
    with pytest.raises(ValueError, match="head_dim=0"):
        paged_attention(**given)
