# SPDX-License-Identifier: Apache-2.0
"""Every dtype and every form of an array, at every entry point of the operator."""

import array as buffers
import ctypes
import itertools

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import DTYPES, assert_as_exact_as_numpy, assert_same_bits, check_attention, exactly
from support.arrays import LAYOUTS, qkv

import selfattn
from selfattn import reference

bfloat16 = ml_dtypes.bfloat16

pytestmark = pytest.mark.usefixtures("isa")


def inputs(rng, dtype, **sizes):
    sizes = {"heads": 4, "kv_heads": 2, "q_len": 21, "kv_len": 50, "dim": 20, "value_dim": 36} | sizes
    return [array.astype(dtype) for array in qkv(rng, **sizes)]


# ---- the values ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 64, 100])
def test_every_dtype(rng, dim, dtype):
    for q_len, kv_len in ((1, 33), (17, 70), (67, 300)):
        check_attention(*inputs(rng, dtype, batch=4, q_len=q_len, kv_len=kv_len, dim=dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
@pytest.mark.parametrize(
    "options",
    [
        {"mask": np.tri(21, 50, 20, dtype=bool)},
        {"kv_lengths": np.array([50, 3])},
        {"window": (13, 2)},
        {"softcap": 2.0},
        {"alibi_slopes": selfattn.alibi_slopes(4)},
        {"sinks": np.arange(4.0)},
        {"scale": -1.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option(rng, dtype, causal, options):
    check_attention(*inputs(rng, dtype), causal=causal, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_in_the_dtype_of_the_query_or_float32(rng, dtype):
    arrays = inputs(rng, dtype)
    bias = rng.standard_normal((4, 21, 50)).astype(dtype)
    bias[:, 3, ::2] = -np.inf
    in_its_own = check_attention(*arrays, bias=bias)
    if dtype != np.float64:
        assert_same_bits(selfattn.attention(*arrays, bias=bias.astype(np.float32)), in_its_own)
    check_attention(*arrays, bias=rng.standard_normal((4, 21, 50)).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_values_do_not_overflow_in_between(rng, dtype):
    """Scores of 1e6 are beyond float16, and no score is ever rounded to it."""
    query, key, value = inputs(rng, dtype)
    factor = np.asarray(300, dtype)
    out = selfattn.attention(query * factor, key * factor, value)
    assert np.isfinite(out.astype(np.float64)).all()
    check_attention(query * factor, key * factor, value, scale=1e-5)


def test_half_types_are_computed_in_float32(rng):
    """What a half-width input gives is what its widened copy gives, rounded once."""
    for dtype in (np.float16, bfloat16):
        arrays = inputs(rng, dtype, kv_len=300)
        wide = [array.astype(np.float32) for array in arrays]
        out, lse = selfattn.attention(*arrays, causal="bottom_right", return_lse=True)
        expected, expected_lse = selfattn.attention(*wide, causal="bottom_right", return_lse=True)
        assert_same_bits(out, expected.astype(dtype))
        assert_same_bits(lse, expected_lse)
        weights = selfattn.attention_weights(*arrays[:2])
        assert_same_bits(weights, selfattn.attention_weights(*wide[:2]).astype(dtype))


def test_float64_is_float64_throughout(rng):
    """Numbers that float32 cannot tell apart, and a difference of 1e-12 in the result."""
    query, key, value = inputs(rng, np.float64)
    out, lse = selfattn.attention(query, key, value, return_lse=True)
    moved, moved_lse = selfattn.attention(query, key + 1e-12 * value[..., :20], value, return_lse=True)
    assert 0 < np.abs(moved - out).max() < 1e-10
    assert 0 < np.abs(moved_lse - lse).max() < 1e-10
    shifted = selfattn.attention(query, key, value, bias=np.full((21, 1), 1e-13))
    np.testing.assert_allclose(shifted, out, rtol=1e-12)
    huge = selfattn.attention(query * 1e100, key, value, scale=1e-100 / np.sqrt(20))
    np.testing.assert_allclose(huge, out, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"causal": "bottom_right"}, {"window": (30, 4), "softcap": 5.0}], ids=str
)
def test_bfloat16_precision(rng, dtype, options):
    """Factors may be rounded to bfloat16, of 8 bits; the result keeps its dtype and most of those."""
    arrays = inputs(rng, dtype, q_len=40, kv_len=300)
    out, lse = selfattn.attention(*arrays, **options, precision="bfloat16", return_lse=True)
    assert (out.dtype, lse.dtype) == (dtype, np.float32)
    exact, exact_lse = exactly(reference.attention, *arrays, **options, return_lse=True)
    assert np.sqrt(np.mean((out.astype(np.float64) - exact) ** 2) / np.mean(exact**2)) < 2**-6
    assert np.abs(lse - exact_lse).max() < 2**-5
    weights = selfattn.attention_weights(*arrays[:2], **options, precision="bfloat16").astype(np.float64)
    exact_weights = exactly(reference.attention_weights, *arrays[:2], **options)
    assert np.sqrt(np.mean((weights - exact_weights) ** 2) / np.mean(exact_weights**2)) < 2**-6


# ---- the entry points ----


def weights(query, key, value):
    return selfattn.attention_weights(query, key)


def chosen_weights(query, key, value):
    return selfattn.attention_weights(query, key, rows=[3, 1])


def column_sums(query, key, value):
    return selfattn.attention_column_sums(query, key)


def packed(query, key, value):
    rows = [np.moveaxis(np.asarray(array), 1, 2) for array in (query, key, value)]
    bounds = [np.arange(3) * array.shape[1] for array in rows[:2]]
    rows = [np.concatenate(list(array)) for array in rows]
    out = selfattn.varlen_attention(*rows, *bounds)
    return np.moveaxis(out.reshape(2, -1, *out.shape[1:]), 2, 1)


def paged(query, key, value):
    return selfattn.paged_attention(query, key, value, [[0], [1]], [key.shape[2]] * 2)


def cached(query, key, value):
    cache = selfattn.KVCache(2, 2, 20, value_dim=36, capacity=key.shape[2], dtype=key.dtype)
    cache.append(key, value)
    return cache.attention(query, causal=False)


FULL = {"attention": selfattn.attention, "varlen": packed, "paged": paged, "cache": cached}
ENTRY_POINTS = FULL | {"weights": weights, "rows": chosen_weights, "column sums": column_sums}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FULL)
def test_every_form_gives_the_same_bits(rng, name, dtype):
    arrays = inputs(rng, dtype)
    out = FULL[name](*arrays)
    assert_same_bits(out, selfattn.attention(*arrays))
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [None, [3, 1]])
def test_weights_of_every_dtype(rng, rows, dtype):
    query, key, _ = inputs(rng, dtype)
    ours = selfattn.attention_weights(query, key, rows=rows)
    assert ours.dtype == dtype
    naive = reference.attention_weights(query, key, rows=rows).astype(dtype)
    assert_as_exact_as_numpy(ours, naive, exactly(reference.attention_weights, query, key, rows=rows))


# ---- arrays as they lie, and as others hold them ----


def big_endian(array):
    return array.astype(array.dtype.newbyteorder(">"))


def in_a_file(array, tmp_path, mode="c"):
    file = np.memmap(tmp_path / "array", array.dtype, "w+", shape=array.shape)
    file[...] = array
    file.flush()
    return np.memmap(tmp_path / "array", array.dtype, mode, shape=array.shape)


class Producer:
    """Speaks DLPack, and nothing else: what an array of another library looks like from here."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_layout(rng, name, layout, dtype):
    arrays = inputs(rng, dtype)
    laid_out = [LAYOUTS[layout](array) for array in arrays]
    assert_same_bits(ENTRY_POINTS[name](*laid_out), ENTRY_POINTS[name](*arrays))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["attention", "weights", "rows", "column sums", "varlen", "paged"])
def test_big_endian(rng, name, dtype):
    arrays = inputs(rng, dtype)
    swapped = [big_endian(array) for array in arrays]
    assert not swapped[0].dtype.isnative
    out = ENTRY_POINTS[name](*swapped)
    assert out.dtype.isnative
    assert_same_bits(out, ENTRY_POINTS[name](*arrays))


def test_big_endian_masks(rng):
    arrays = inputs(rng, np.float32)
    bias = rng.standard_normal((21, 50)).astype(np.float32)
    options = {"bias": bias, "kv_lengths": np.array([4, 50]), "sinks": np.arange(4.0)}
    swapped = {name: big_endian(option) for name, option in options.items()}
    assert_same_bits(selfattn.attention(*arrays, **swapped), selfattn.attention(*arrays, **options))


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_memory_mapped_files(rng, tmp_path, mode):
    query, key, value = inputs(rng, np.float32)
    out = selfattn.attention(query, in_a_file(key, tmp_path, mode), value)
    assert type(out) is np.ndarray
    assert_same_bits(out, selfattn.attention(query, key, value))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_dlpack(rng, dtype):
    arrays = inputs(rng, dtype)
    expected = selfattn.attention(*arrays)
    assert_same_bits(selfattn.attention(*map(Producer, arrays)), expected)
    strided = [np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2) for array in arrays]
    assert_same_bits(selfattn.attention(*map(Producer, strided)), expected)
    mixed = selfattn.attention(
        arrays[0], Producer(arrays[1]), arrays[2], mask=Producer(np.ones((21, 50), bool))
    )
    assert_same_bits(mixed, expected)


def test_buffers(rng):
    arrays = inputs(rng, np.float32)
    expected = selfattn.attention(*arrays)
    assert_same_bits(selfattn.attention(*map(memoryview, arrays)), expected)
    assert_same_bits(selfattn.attention(*(memoryview(array)[::1].toreadonly() for array in arrays)), expected)
    of_c = [np.ctypeslib.as_ctypes(array) for array in arrays]
    assert isinstance(of_c[0], ctypes.Array)
    assert_same_bits(selfattn.attention(*of_c), expected)
    flat = buffers.array("f", arrays[0].tobytes())
    shaped = memoryview(flat).cast("B").cast("f", arrays[0].shape)
    assert_same_bits(selfattn.attention(shaped, *arrays[1:]), expected)
    with pytest.raises(ValueError, match=r"query.*3 dimensions"):
        selfattn.attention(flat, *arrays[1:])


def test_masks_and_numbers_in_buffers(rng):
    arrays = inputs(rng, np.float32)
    mask, bias = rng.random((21, 50)) < 0.5, rng.standard_normal(50).astype(np.float32)
    expected = selfattn.attention(*arrays, mask=mask, bias=bias, kv_lengths=[5, 50], sinks=[0, 1, 2, 3])
    actual = selfattn.attention(
        *arrays,
        mask=memoryview(mask),
        bias=buffers.array("f", bias),
        kv_lengths=buffers.array("i", [5, 50]),
        sinks=buffers.array("d", [0, 1, 2, 3]),
    )
    assert_same_bits(actual, expected)


def test_no_copy_is_made_of_another_s_array(rng, monkeypatch):
    """What the kernels are handed lies where the producer's numbers lie."""
    from selfattn._native import operator as _operator

    arrays = inputs(rng, np.float32)
    seen = []
    monkeypatch.setattr(_operator, "attention", lambda *given, **options: seen.extend(given[:3]))
    selfattn.attention(Producer(arrays[0]), memoryview(arrays[1]), arrays[2])
    for ours, theirs in zip(seen, arrays, strict=True):
        assert ours.__array_interface__["data"][0] == theirs.__array_interface__["data"][0]
        assert ours.strides == theirs.strides


# ---- the output ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read_only"])
def test_out_of_every_layout(rng, layout, dtype):
    arrays = inputs(rng, dtype)
    expected = selfattn.attention(*arrays)
    out = LAYOUTS[layout](np.zeros(expected.shape, dtype))
    assert selfattn.attention(*arrays, out=out) is out
    assert_same_bits(np.array(out), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_may_be_an_input(rng, dtype):
    for index in range(3):
        arrays = inputs(rng, dtype, kv_heads=4, kv_len=21, value_dim=20)
        expected = selfattn.attention(*arrays)
        assert selfattn.attention(*arrays, out=arrays[index]) is arrays[index]
        assert_same_bits(arrays[index], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_of_the_other_byte_order(rng, dtype):
    arrays = inputs(rng, dtype)
    expected = selfattn.attention(*arrays)
    out = big_endian(np.zeros(expected.shape, dtype))
    assert selfattn.attention(*arrays, out=out) is out
    assert_same_bits(out.astype(dtype), expected)


def test_out_that_another_holds(rng, tmp_path):
    arrays = inputs(rng, np.float32)
    expected = selfattn.attention(*arrays)
    there = np.zeros_like(expected)
    for out in (Producer(there), memoryview(there), in_a_file(there, tmp_path, "r+")):
        there[...] = np.nan
        assert selfattn.attention(*arrays, out=out) is out
        held = out if isinstance(out, np.memmap) else there
        assert_same_bits(np.array(held), expected)
    with pytest.raises(ValueError, match=r"out.*read-only"):
        selfattn.attention(*arrays, out=memoryview(there).toreadonly())
    with pytest.raises(ValueError, match=r"out.*read-only"):
        selfattn.attention(*arrays, out=in_a_file(there, tmp_path, "r"))


@pytest.mark.parametrize(("dtype", "other"), list(itertools.permutations(DTYPES, 2)))
def test_dtypes_do_not_mix(rng, dtype, other):
    arrays = inputs(rng, dtype)
    for index in range(3):
        mixed = [array.astype(other) if i == index else array for i, array in enumerate(arrays)]
        with pytest.raises(
            TypeError, match=f"{np.dtype(dtype)}.*{np.dtype(other)}|{np.dtype(other)}.*{np.dtype(dtype)}"
        ):
            selfattn.attention(*mixed)
    with pytest.raises(TypeError, match=f"out.*{np.dtype(other)}.*{np.dtype(dtype)}"):
        selfattn.attention(*arrays, out=np.zeros((2, 4, 21, 36), other))
