# SPDX-License-Identifier: Apache-2.0
"""selfattn.attention against the reference: every size, every way an array can lie, every output."""

import numpy as np
import pytest
from support.accuracy import assert_as_exact_as_numpy, assert_same_bits, check_attention, widened
from support.arrays import LAYOUTS, qkv
from support.guard import guarded

import selfattn
from selfattn import reference

HEAD_DIMS = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    40,
    63,
    64,
    65,
    80,
    96,
    100,
    127,
    128,
    129,
    256,
    512,
)
LENGTHS = (
    0,
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    33,
    47,
    63,
    64,
    65,
    95,
    96,
    97,
    127,
    129,
    191,
    192,
    193,
    257,
    300,
)

pytestmark = pytest.mark.usefixtures("isa")


def enough(length: int) -> int:
    """A batch that gives the largest error of some hundred rows to compare, not the luck of one."""
    return max(1, 96 // max(1, length))


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_every_head_dim(rng, dim):
    for q_len, kv_len in ((1, 33), (17, 70), (67, 35)):
        check_attention(*qkv(rng, batch=enough(q_len), q_len=q_len, kv_len=kv_len, dim=dim))


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_every_value_dim(rng, dim):
    check_attention(*qkv(rng, batch=3, q_len=35, kv_len=41, dim=24, value_dim=dim))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_number_of_queries(rng, length):
    check_attention(*qkv(rng, batch=enough(length), q_len=length, kv_len=50, dim=33))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_number_of_keys(rng, length):
    check_attention(*qkv(rng, batch=4, q_len=23, kv_len=length, dim=33))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_causal(rng, length):
    check_attention(*qkv(rng, batch=enough(length), q_len=length, dim=40), causal=True)


@pytest.mark.parametrize(("q_len", "kv_len"), [(2, 1536), (2, 1537), (1, 3100), (70, 3100), (1537, 40)])
def test_many_keys_and_many_queries(rng, q_len, kv_len):
    check_attention(*qkv(rng, batch=2, q_len=q_len, kv_len=kv_len, dim=64))
    check_attention(*qkv(rng, batch=2, q_len=q_len, kv_len=kv_len, dim=20), causal="bottom_right")


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 1), (6, 2), (6, 3), (12, 1), (7, 7), (32, 8)])
@pytest.mark.parametrize("q_len", [1, 3, 20])
def test_grouped_heads(rng, heads, kv_heads, q_len):
    check_attention(*qkv(rng, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=37, dim=24, value_dim=40))


@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (8, 1)])
def test_grouped_heads_with_masks(rng, causal, heads, kv_heads):
    query, key, value = qkv(rng, heads=heads, kv_heads=kv_heads, q_len=11, kv_len=19)
    mask = rng.random((2, heads, 11, 19)) < 0.7
    bias = rng.standard_normal((heads, 1, 19)).astype(np.float32)
    check_attention(query, key, value, mask=mask, bias=bias, causal=causal, kv_lengths=np.array([19, 6]))


@pytest.mark.parametrize(
    ("query_lead", "key_lead", "value_lead"),
    [
        ((), (), ()),
        ((1,), (5,), (5,)),
        ((5,), (1,), (5,)),
        ((5,), (5,), (1,)),
        ((4,), (), ()),
        ((), (4,), ()),
        ((2, 3), (3,), (2, 1)),
        ((2, 1, 3), (1, 2, 1), (3,)),
    ],
)
def test_leading_dimensions_broadcast(rng, query_lead, key_lead, value_lead):
    query = rng.standard_normal((*query_lead, 4, 9, 16)).astype(np.float32)
    key = rng.standard_normal((*key_lead, 2, 13, 16)).astype(np.float32)
    value = rng.standard_normal((*value_lead, 2, 13, 24)).astype(np.float32)
    check_attention(query, key, value)


@pytest.mark.parametrize(
    ("batch", "heads", "q_len", "kv_len", "dim", "value_dim"),
    [
        (0, 2, 3, 4, 8, 8),
        (2, 2, 0, 4, 8, 8),
        (2, 2, 3, 0, 8, 8),
        (2, 2, 0, 0, 8, 8),
        (2, 2, 3, 4, 8, 0),
    ],
)
def test_zero_sizes(rng, batch, heads, q_len, kv_len, dim, value_dim):
    query, key, value = qkv(
        rng, batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, dim=dim, value_dim=value_dim
    )
    out, lse = selfattn.attention(query, key, value, return_lse=True)
    assert out.shape == (batch, heads, q_len, value_dim)
    assert lse.shape == (batch, heads, q_len)
    if kv_len == 0:
        assert not out.any()
        assert np.isneginf(lse).all()
    weights = selfattn.attention_weights(query, key)
    assert weights.shape == (batch, heads, q_len, kv_len)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["query", "key", "value", "mask", "bias"])
def test_every_layout(rng, layout, argument):
    arrays = dict(
        zip(("query", "key", "value"), qkv(rng, q_len=19, kv_len=37, dim=20, value_dim=36), strict=True)
    )
    arrays["mask"] = rng.random((2, 2, 19, 37)) < 0.8
    arrays["bias"] = rng.standard_normal((2, 2, 19, 37)).astype(np.float32)
    expected = selfattn.attention(**arrays)
    laid_out = {**arrays, argument: LAYOUTS[layout](arrays[argument])}
    assert_same_bits(selfattn.attention(**laid_out), expected)
    np.testing.assert_array_equal(laid_out[argument], arrays[argument], "the input was written to")


def test_zero_strides(rng):
    query, key, value = qkv(rng, q_len=9, kv_len=33, dim=17)
    one_query = np.broadcast_to(query[:, :, :1], query.shape)
    one_key = np.broadcast_to(key[:, :, :1], key.shape)
    one_number = np.broadcast_to(np.float32(0.5), value.shape)
    check_attention(one_query, key, value)
    check_attention(query, one_key, value)
    check_attention(query, key, one_number)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read_only"])
def test_out_of_every_layout(rng, layout):
    query, key, value = qkv(rng, q_len=19, kv_len=37, dim=20, value_dim=36)
    expected = selfattn.attention(query, key, value)
    out = LAYOUTS[layout](np.full(expected.shape, np.nan, np.float32))
    owner = out if out.base is None else out.base
    before = owner.tobytes()
    result = selfattn.attention(query, key, value, out=out)
    assert result is out
    assert_same_bits(np.array(out), expected)
    out[...] = np.nan
    assert owner.tobytes() == before, "attention wrote beside its output"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_out_may_be_an_input(rng, index):
    arrays = qkv(rng, batch=3, q_len=133, dim=40)
    expected = selfattn.attention(*arrays)
    assert_same_bits(selfattn.attention(*arrays, out=arrays[index]), expected)


def test_out_may_overlap_an_input_in_part(rng):
    room = rng.standard_normal((6, 2, 50, 16)).astype(np.float32)
    query, key, value = room[0:4], room[1:5], room[2:6]
    expected = selfattn.attention(query, key, value)
    assert_same_bits(selfattn.attention(query, key, value, out=room[1:5]), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.7, 3.0, 1e-20, np.float32(0.25)])
def test_scale(rng, scale):
    check_attention(*qkv(rng, batch=4, q_len=21, kv_len=40), scale=scale)


def test_scale_zero_is_the_mean_of_the_values(rng):
    query, key, value = qkv(rng, q_len=5, kv_len=64)
    out = selfattn.attention(query, key, value, scale=0.0)
    np.testing.assert_allclose(out, np.broadcast_to(value.mean(axis=-2, keepdims=True), out.shape), atol=2e-7)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 50), (3, 17), (16, 33), (35, 65), (67, 193)])
def test_no_byte_outside_an_array_is_touched(rng, q_len, kv_len, at_end, num_threads):
    for dim in (1, 3, 8, 17, 64, 65):
        arrays = dict(
            zip(
                ("query", "key", "value"),
                qkv(rng, q_len=q_len, kv_len=kv_len, dim=dim, value_dim=dim + 2),
                strict=True,
            )
        )
        arrays["mask"] = rng.random((2, q_len, kv_len)) < 0.8
        arrays["bias"] = rng.standard_normal((2, 1, 1, kv_len)).astype(np.float32)
        arrays["out"] = np.full((2, 2, q_len, dim + 2), np.nan, np.float32)
        expected = selfattn.attention(**{**arrays, "out": None})
        beside = {name: guarded(array, at_end=at_end) for name, array in arrays.items()}
        assert_same_bits(selfattn.attention(**beside, num_threads=num_threads), expected)


def test_a_poisoned_workspace_does_not_show(rng):
    big = [np.full_like(array, np.nan) for array in qkv(rng, q_len=300, dim=128)]
    query, key, value = qkv(rng, q_len=31, kv_len=45, dim=20)
    clean = selfattn.attention(query, key, value)
    assert np.isnan(selfattn.attention(*big)).all()
    assert_same_bits(selfattn.attention(query, key, value), clean)


@pytest.mark.parametrize(
    "options", [{}, {"causal": "bottom_right"}, {"scale": 2.0}, {"kv_lengths": np.array([3, 0])}]
)
@pytest.mark.parametrize("rows", [None, [0], [8, 2, 2], np.arange(3)])
def test_attention_weights(rng, options, rows):
    query, key, _ = qkv(rng, heads=4, kv_heads=2, q_len=9, kv_len=40)
    weights = selfattn.attention_weights(query, key, rows=rows, **options)
    assert weights.dtype == np.float32
    assert_as_exact_as_numpy(
        weights,
        reference.attention_weights(query, key, rows=rows, **options),
        reference.attention_weights(widened(query), widened(key), rows=rows, **options),
    )
    sums = weights.sum(axis=-1)
    np.testing.assert_allclose(sums[sums > 0], 1, atol=1e-6)


def test_attention_weights_times_value_is_attention(rng):
    query, key, value = qkv(rng, q_len=30, kv_len=200)
    mask = rng.random((30, 200)) < 0.5
    weights = selfattn.attention_weights(query, key, mask=mask)
    np.testing.assert_allclose(
        weights @ value, selfattn.attention(query, key, value, mask=mask), rtol=1e-5, atol=1e-6
    )
    assert not weights[:, :, ~mask].any(), "a masked key has weight"


def test_kv_lengths_that_share_memory_with_out():
    """The lengths that were checked are the ones that count, whatever the call writes over them."""
    memory = np.zeros(8, np.float32)
    lengths = memory[:4].view(np.int64)
    lengths[:] = 2
    query, key = np.ones((2, 1, 1, 4), np.float32), np.ones((2, 1, 2, 4), np.float32)
    value = np.full((2, 1, 2, 4), 3e9, np.float32)
    out = selfattn.attention(query, key, value, kv_lengths=lengths, out=memory.reshape(2, 1, 1, 4))
    np.testing.assert_array_equal(out, np.float32(3e9))


def test_no_lengths_for_no_items():
    arrays = [np.zeros((0, 1, 3, 4), np.float32)] * 3
    assert selfattn.attention(*arrays, kv_lengths=[]).shape == (0, 1, 3, 4)
