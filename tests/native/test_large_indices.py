# SPDX-License-Identifier: Apache-2.0
"""Index arithmetic past 2^31, in views that hold little: strides of 0, windows, files that are holes."""

import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from support.accuracy import assert_same_bits
from support.arrays import qkv

import selfattn

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.skipif(sys.maxsize < 2**32, reason="there are no such indices here"),
]
BIG = 2**31


@pytest.fixture
def sparse(tmp_path):
    """sparse(shape, dtype): zeros in a file with holes, which takes room only where something is written."""
    files = iter(range(99))

    def make(shape, dtype=np.float32):
        path = tmp_path / f"{next(files)}"
        return np.memmap(path, dtype, "w+", shape=shape)

    return make


def spread(array, axis, sparse, stride=BIG + 4096):
    """The same numbers, those that follow each other along `axis` more than 2^31 bytes apart."""
    strides = [array.itemsize]
    for size in array.shape[:0:-1]:
        strides.insert(0, strides[0] * size)
    strides[axis] = stride
    room = sparse(array.shape[axis] * stride, np.uint8)
    view = np.ndarray(array.shape, array.dtype, room, 0, strides)
    view[...] = array
    return view


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("argument", ["query", "key", "value", "mask", "bias", "out"])
def test_strides_past_2_to_the_31(rng, sparse, argument, axis):
    arrays = dict(zip(("query", "key", "value"), qkv(rng, q_len=3, dim=3), strict=True))
    arrays["mask"], arrays["bias"] = rng.random((2, 2, 3, 3)) < 0.8, arrays["query"] + 1
    expected = selfattn.attention(**arrays)
    arrays["out"] = np.zeros_like(expected)
    far = spread(arrays[argument], axis, sparse)
    assert_same_bits(np.ascontiguousarray(selfattn.attention(**(arrays | {argument: far}))), expected)


@pytest.mark.parametrize("stride", [-(BIG + 4096), 3 * BIG])
def test_strides_that_are_negative_or_past_2_to_the_32(rng, sparse, stride):
    query, key, value = qkv(rng, batch=1, q_len=3, dim=4)
    expected = selfattn.attention(query, key, value)
    if stride < 0:
        far = spread(key[:, :, ::-1], 2, sparse, -stride)[:, :, ::-1]
        assert far.strides[2] == stride
    else:
        far = spread(key, 2, sparse, stride)
    assert_same_bits(selfattn.attention(query, far, value), expected)


def sliding(sparse, length, dim, last):
    """(1, length, dim) of floats in one run of memory: row j begins at number j; `last` are the last."""
    room = sparse(length + dim - 1)
    room[-len(last) :] = last
    return as_strided(room, (1, length, dim), (0, room.itemsize, room.itemsize))


@pytest.mark.parametrize("form", ["window", "lengths", "alibi"])
def test_more_than_2_to_the_31_keys(rng, sparse, form):
    """Of which a query sees the last 5. onnxruntime#27822: keys times head_dim overflowed 32 bits."""
    dim, kv_len = 4, BIG + 9
    key, value = (sliding(sparse, kv_len, dim, rng.standard_normal(40).astype(np.float32)) for _ in range(2))
    query = rng.standard_normal((2, 3, dim)).astype(np.float32)  # two heads over one
    options = {"causal": "bottom_right", "window": (4, 0)}
    if form == "lengths":
        options["kv_lengths"] = np.array(kv_len - 2)
    if form == "alibi":
        options["alibi_slopes"] = np.array([0.5, 0.25])
    end = kv_len - 2 if form == "lengths" else kv_len
    near = slice(end - 30, end)
    expected = selfattn.attention(query, key[:, near], value[:, near], **(options | {"kv_lengths": None}))
    out = selfattn.attention(query, key, value, **options)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)  # other blocks of keys: other rounding


def test_a_mask_and_a_bias_of_more_than_2_to_the_31_keys(rng, sparse):
    dim, kv_len = 4, BIG + 9
    key, value = (sliding(sparse, kv_len, dim, rng.standard_normal(40).astype(np.float32)) for _ in range(2))
    mask, bias = sparse(kv_len, np.bool_), sparse(kv_len)
    mask[-5:], bias[-30:] = [True, False, True, True, False], rng.standard_normal(30)
    query = rng.standard_normal((1, 2, dim)).astype(np.float32)
    options = {"causal": "bottom_right", "window": (7, 0)}
    near = slice(kv_len - 30, kv_len)
    expected = selfattn.attention(
        query, key[:, near], value[:, near], mask=np.array(mask[near]), bias=np.array(bias[near]), **options
    )
    out = selfattn.attention(query, key, value, mask=mask, bias=bias, **options)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_square_mask_of_65537_words(rng, name):
    """pytorch#162588, #186075, #187225: the row times its stride in a mask overflowed 32 bits."""
    length, dim = 2**16 + 1, 2
    query = np.broadcast_to(rng.standard_normal((1, 1, dim)).astype(np.float32), (1, length, dim))
    value = rng.standard_normal((1, length, dim)).astype(np.float32)
    dtype, hidden = (np.bool_, False) if name == "mask" else (np.float32, -np.inf)
    column = np.full(length, True, dtype)
    column[::3] = hidden
    options = {"causal": True, "window": (3, 0)}
    expected = selfattn.attention(query, query, value, **options, **{name: column})
    square = np.broadcast_to(column, (length, length))
    assert_same_bits(selfattn.attention(query, query, value, **options, **{name: square}), expected)


def test_a_square_mask_of_65537_words_in_memory(rng, sparse):
    length, dim = 2**16 + 1, 2
    mask = sparse((length, length), np.bool_)
    mask[-2, 5] = mask[-1, -1] = mask[0, 7] = True
    query = np.broadcast_to(np.ones(dim, np.float32), (1, length, dim))
    value = rng.standard_normal((1, length, dim)).astype(np.float32)
    rows = [0, 1, length - 2, length - 1]
    weights = selfattn.attention_weights(query, query, mask=mask, rows=rows)
    assert [tuple(index) for index in np.argwhere(weights[0])] == [(0, 7), (2, 5), (3, length - 1)]
    some = np.array(rows)
    out = selfattn.attention(query[:, some], query, value, mask=mask[some])
    np.testing.assert_array_equal(out[0], [value[0, 7], [0, 0], value[0, 5], value[0, -1]])


def test_rows_of_more_than_2_to_the_31_queries(rng):
    """The weights of chosen queries, at the positions that they have among all."""
    q_len = BIG + 5
    query = np.broadcast_to(rng.standard_normal((2, 1, 4)).astype(np.float32), (2, q_len, 4))
    key = rng.standard_normal((2, 6, 4)).astype(np.float32)
    rows = [0, 3, BIG, q_len - 1]
    weights = selfattn.attention_weights(query, key, rows=rows, causal="bottom_right")
    seen = np.arange(6) <= (np.array(rows) + 6 - q_len)[:, None]
    expected = selfattn.attention_weights(query[:, :4], key, mask=seen)
    assert_same_bits(weights, expected)


def test_a_packed_batch_of_more_than_2_to_the_31_keys(rng, sparse):
    """The first sequence is long and none of its keys count; the second lies wholly past 2^31."""
    total, dim = BIG + 40, 4
    key, value = (
        sliding(sparse, total, dim, rng.standard_normal(60).astype(np.float32))[0, :, None] for _ in range(2)
    )
    query = rng.standard_normal((3, 1, dim)).astype(np.float32)
    out = selfattn.varlen_attention(query, key, value, [0, 1, 3], [0, BIG + 1, total], kv_lengths=[0, 39])
    second = (array.swapaxes(0, 1) for array in (query[1:], key[BIG + 1 :], value[BIG + 1 :]))
    assert not out[0].any()
    assert_same_bits(out[1:].swapaxes(0, 1), selfattn.attention(*second))


def test_pages_past_2_to_the_31_numbers(rng, sparse):
    num_pages, heads, page_size, dim = 2**19 + 3, 2, 64, 32
    key_pages, value_pages = (sparse((num_pages, heads, page_size, dim)) for _ in range(2))
    assert key_pages.size > BIG
    query, key, value = qkv(rng, batch=1, heads=heads, q_len=3, kv_len=130, dim=dim)
    tables = [[num_pages - 1, 5, num_pages - 2]]
    for page, first in zip(tables[0], (0, 64, 128), strict=True):
        for pages, array in ((key_pages, key), (value_pages, value)):
            part = array[0, :, first : first + page_size]
            pages[page, :, : part.shape[1]] = part
    out = selfattn.paged_attention(query, key_pages, value_pages, tables, [130])
    assert_same_bits(out, selfattn.attention(query, key, value))


@pytest.mark.parametrize("batch", [2**31, 2**40])
def test_a_result_that_fits_nowhere_is_a_memory_error(batch):
    query = np.broadcast_to(np.float32(1), (batch, 1, 2**16, 8))
    with pytest.raises(MemoryError):
        selfattn.attention(query, query, query)
