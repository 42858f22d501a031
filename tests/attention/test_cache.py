# SPDX-License-Identifier: Apache-2.0
"""KVCache: what is stored, in which dtype, and what is refused."""

import itertools

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import LAYOUTS
from support.caches import assert_same_state, small, state, tokens, whole_arrays

from selfattn import KVCache

# ---- what is stored ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capacity", [0, 1, 700])
def test_the_first_row_begins_a_cache_line(dtype, capacity):
    caches = [small(dtype, capacity=capacity) for _ in range(5)]
    for array in (array for cache in caches for array in (cache._key, cache._value)):
        assert array.ctypes.data % 64 == 0 or array.size == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not array.any()


def test_sizes_may_be_small_integers():
    """Their product is not one."""
    cache = KVCache(*np.array([8, 8, 64], np.int16), capacity=np.int16(1024))
    assert cache.value.shape == (8, 8, 0, 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("appended_as", [np.float32, None])
def test_tokens_are_stored_in_the_order_of_their_arrival(rng, dtype, appended_as):
    key, value = tokens(rng, 9, dtype=appended_as or dtype)
    cache = small(dtype)
    for first, last in itertools.pairwise([0, 4, 5, 5, 9]):
        cache.append(key[:, :, first:last], value[:, :, first:last])
        np.testing.assert_array_equal(cache.lengths, [last, last])
    assert_same_bits(cache.key, key.astype(dtype))
    assert_same_bits(cache.value, value.astype(dtype))
    assert (cache.key_scale, cache.value_scale) == (None, None)


@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_sequences_grow_at_their_own_speed(rng, dtype):
    cache, alone = small(dtype), [small(dtype, batch=1) for _ in range(2)]
    for counts in ([2, 0], [0, 3], [1, 2], [0, 0], [3, 1]):
        key, value = tokens(rng, 3)
        cache.append(key, value, lengths=counts)
        for b, count in enumerate(counts):
            alone[b].append(key[b : b + 1, :, :count], value[b : b + 1, :, :count])
    np.testing.assert_array_equal(cache.lengths, [6, 6])
    for b in range(2):
        for together, single in zip(state(cache)[1:], state(alone[b])[1:], strict=True):
            if together is not None:
                assert_same_bits(together[b : b + 1], single)


def test_what_lies_beyond_the_lengths_is_not_stored(rng):
    for dtype in (np.float32, np.int8):
        key, value = tokens(rng, 3)
        key[0, :, 1:], value[0, :, 1:] = np.nan, np.nan
        cache = small(dtype)
        cache.append(key, value, lengths=[1, 3])
        cache.append(key, value, lengths=[1, 0])
        query = np.ones((2, 4, 1, 8), np.float32)
        assert np.isfinite(cache.attention(query)).all()


def test_views_are_read_only_and_no_copies(rng):
    cache = small(np.int8)
    cache.append(*tokens(rng, 2))
    for view in (cache.lengths, cache.key, cache.value, cache.key_scale, cache.value_scale):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    assert np.shares_memory(cache.key, cache.key)
    before = cache.lengths
    cache.append(*tokens(rng, 2))
    np.testing.assert_array_equal(before, [2, 2])


def test_clear_forgets_and_fills_again(rng):
    cache, fresh = small(), small()
    cache.append(*tokens(rng, 10))
    cache.clear()
    np.testing.assert_array_equal(cache.lengths, [0, 0])
    assert cache.key.shape == (2, 2, 0, 8)
    again = tokens(rng, 10)
    for one in (cache, fresh):
        one.append(*again)
    assert_same_bits(cache.key, fresh.key)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_tokens_may_lie_anyhow(rng, layout, dtype):
    plain, other = small(dtype), small(dtype)
    key, value = tokens(rng, 3)
    plain.append(key, value)
    other.append(LAYOUTS[layout](key), LAYOUTS[layout](value))
    assert_same_state(other, state(plain))


def test_tokens_of_the_other_byte_order_and_of_the_buffer_protocol(rng):
    key, value = tokens(rng, 3)
    cache = small()
    cache.append(key.astype(">f4"), memoryview(value))
    assert_same_bits(cache.key, key)
    assert_same_bits(cache.value, value)


def test_float16_rounds_to_infinity_as_numpy_does():
    cache = small(np.float16)
    cache.append(np.full((2, 2, 1, 8), 1e5, np.float32), np.full((2, 2, 1, 5), -1e5, np.float32))
    np.testing.assert_array_equal(cache.key, np.inf)
    np.testing.assert_array_equal(cache.value, -np.inf)


# ---- int8 ----


def test_int8_tokens_by_hand():
    cache = small(np.int8, batch=1, num_kv_heads=1, head_dim=4, value_dim=1)
    key = np.array([[-12.7, 6.35, 0.04, 0.06], [0, 0, 0, 0], [254, -2, 1, 0]], np.float32)
    cache.append(key[None, None], np.array([[[[3.0], [-1.5], [0.0]]]], np.float32))
    np.testing.assert_array_equal(
        cache.key[0, 0], [[-127, 64, 0, 1], [0, 0, 0, 0], [127, -1, 0, 0]]
    )  # halves go to the even step: 63.5 -> 64, 0.5 -> 0
    np.testing.assert_allclose(cache.key_scale[0, 0], [0.1, 0, 2], rtol=1e-6)
    np.testing.assert_array_equal(cache.value[0, 0, :, 0], [127, -127, 0])
    np.testing.assert_allclose(whole_arrays(cache)[1][0, 0, :, 0], [3, -1.5, 0], rtol=1e-6)


def test_int8_is_off_by_at_most_half_a_step(rng):
    key, value = (array * 10.0 ** rng.uniform(-30, 30, (*array.shape[:3], 1)) for array in tokens(rng, 10))
    cache = small(np.int8)
    cache.append(key.astype(np.float32), value.astype(np.float32))
    for array, close, scales in zip((key, value), whole_arrays(cache), state(cache)[3:], strict=True):
        assert (np.abs(array - close) <= 0.5001 * scales[..., None]).all()
        np.testing.assert_allclose(scales, np.abs(array).max(axis=-1) / 127, rtol=1e-6)


@pytest.mark.parametrize("tiny", [1e-45, 1e-43, 2.66e-43, 1e-38])
def test_int8_of_subnormal_tokens_is_finite_and_close(tiny):
    cache = small(np.int8)
    cache.append(np.full((2, 2, 1, 8), tiny, np.float32), np.full((2, 2, 1, 5), -tiny, np.float32))
    for close, sign in zip(whole_arrays(cache), (1, -1), strict=True):
        assert (np.abs(close * sign - np.float32(tiny)) <= max(tiny / 3, 1e-43)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_is_nan_and_no_other_is(rng, bad):
    key, value = tokens(rng, 4)
    cache, clean = small(np.int8), small(np.int8)
    clean.append(key, value)
    key[1, 0, 2, 3] = bad
    cache.append(key, value)
    expected = np.zeros((2, 2, 4), bool)
    expected[1, 0, 2] = True
    close, _ = whole_arrays(cache)
    np.testing.assert_array_equal(np.isnan(close), np.broadcast_to(expected[..., None], close.shape))
    np.testing.assert_array_equal(close[~expected], whole_arrays(clean)[0][~expected])
    query = rng.standard_normal((2, 4, 1, 8)).astype(np.float32)
    assert np.isnan(cache.attention(query)).sum() == 2 * 5  # both query heads of that key head
    assert not np.isnan(cache.attention(query, window=(0, 0))).any()


# ---- nothing at all ----


@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_sizes_of_zero(rng, dtype):
    query = np.ones((2, 4, 3, 8), np.float32 if dtype == np.int8 else dtype)
    empty = small(dtype, capacity=0)
    empty.append(*tokens(rng, 0))
    for cache in (empty, small(dtype)):
        out, lse = cache.attention(query, return_lse=True)
        np.testing.assert_array_equal(out.astype(np.float32), np.zeros((2, 4, 3, 5)))
        np.testing.assert_array_equal(lse, np.full((2, 4, 3), -np.inf))
    with pytest.raises(ValueError, match="capacity=0"):
        empty.append(*tokens(rng, 1))
    nobody = small(dtype, batch=0)
    nobody.append(*tokens(rng, 3, batch=0))
    assert nobody.attention(query[:0]).shape == (0, 4, 3, 5)
    valueless = small(dtype, value_dim=0)
    valueless.append(*tokens(rng, 3, value_dim=0))
    assert valueless.attention(query).shape == (2, 4, 3, 0)
    assert valueless.attention(query[:, :, :0]).shape == (2, 4, 0, 0)


def test_value_dim_is_head_dim_by_default():
    assert KVCache(1, 2, 3, capacity=4).value.shape == (1, 2, 0, 3)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"batch": -1}, ValueError, "batch=-1 must be at least 0"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads=0 must be at least 1"),
        ({"head_dim": 0}, ValueError, "head_dim=0 must be at least 1"),
        ({"value_dim": -2}, ValueError, "value_dim=-2 must be at least 0"),
        ({"capacity": -3}, ValueError, "capacity=-3 must be at least 0"),
        ({"capacity": 4.0}, TypeError, "capacity=4.0 must be an integer"),
        ({"dtype": np.int16}, TypeError, "dtype=int16 must be one of float32"),
        ({"dtype": np.complex64}, TypeError, "dtype=complex64"),
    ],
    ids=str,
)
def test_sizes_that_make_no_cache(wrong, error, message):
    with pytest.raises(error, match=message):
        small(**wrong)


def wrong_appends(rng):
    key, value = tokens(rng, 3)
    return [
        ((key[0], value), {}, ValueError, r"key has shape \(2, 3, 8\); .*\(2, 2, new, 8\)"),
        ((key, value[:1]), {}, ValueError, r"value has shape \(1, 2, 3, 5\); .*\(2, 2, new, 5\)"),
        ((key[:, :1], value), {}, ValueError, r"key has shape \(2, 1, 3, 8\)"),
        ((key[..., :7], value), {}, ValueError, r"key has shape \(2, 2, 3, 7\)"),
        ((key, value[:, :, :2]), {}, ValueError, "key has 3 new tokens and value 2"),
        ((key.astype(np.int8), value), {}, TypeError, "key has dtype int8; .* takes"),
        ((key, value.astype(np.complex64)), {}, TypeError, "value has dtype complex64"),
        ((key.tolist(), value), {}, TypeError, "key is a list"),
        ((key, value), {"lengths": [1, 4]}, ValueError, r"lengths\[1\]=4 must be between 0 and new=3"),
        ((key, value), {"lengths": [-1, 1]}, ValueError, r"lengths\[0\]=-1"),
        ((key, value), {"lengths": [1, 1, 1]}, ValueError, r"lengths has shape \(3,\)"),
        ((key, value), {"lengths": [1.0, 1.0]}, TypeError, "lengths has dtype float64"),
        ((key, value), {"lengths": [0, 2]}, ValueError, "sequence 1 has 9 tokens, and 2 more .* capacity=10"),
        ((key, value), {}, ValueError, "sequence 0 has 8 tokens, and 3 more .* capacity=10"),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("case", range(14))
def test_a_refused_append_changes_nothing(rng, dtype, case):
    cache = small(dtype)
    cache.append(*tokens(rng, 9), lengths=[8, 9])
    before = state(cache)
    arguments, options, error, message = wrong_appends(rng)[case]
    with pytest.raises(error, match=message):
        cache.append(*arguments, **options)
    assert_same_state(cache, before)


class Interrupted(np.ndarray):
    def __setitem__(self, where, what):
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_an_append_interrupted_half_way_changes_nothing(rng, dtype):
    cache = small(dtype)
    cache.append(*tokens(rng, 4))
    before, values = state(cache), cache._value
    cache._value = values.view(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.append(*tokens(rng, 2))
    cache._value = values
    assert_same_state(cache, before)
    more = tokens(rng, 2)
    cache.append(*more)
    np.testing.assert_array_equal(cache.lengths, [6, 6])
    np.testing.assert_allclose(whole_arrays(cache)[0][:, :, 4:], more[0], atol=0.02)
