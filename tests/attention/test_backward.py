# SPDX-License-Identifier: Apache-2.0
"""attention_backward against the specification in a wider dtype: odd sizes, options, arrays in any form."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import DTYPES, assert_same_bits
from support.arrays import LAYOUTS, qkv
from support.attention_gradients import (
    EVERY,
    OPTIONS,
    QKV,
    backward,
    check_backward,
    grad_like_out,
    options_of,
)

import selfattn

SIZES = {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 37, "kv_len": 53, "dim": 20, "value_dim": 24}
SINKS = {"sinks": np.array([0.0, 1.0, -3.0, 3.0])}  # with them a gradient of one key is not just rounding

pytestmark = pytest.mark.usefixtures("isa")


def inputs(rng, dtype=np.float32, **sizes):
    """grad_out, query, key, value."""
    arrays = [array.astype(dtype) for array in qkv(rng, **(SIZES | sizes))]
    return grad_like_out(rng, *arrays), *arrays


def option(rng, name, dtype=np.float32, **sizes):
    sizes = {size: (SIZES | sizes)[size] for size in ("batch", "heads", "q_len", "kv_len")}
    return options_of(rng, **sizes, dtype=dtype)[name]


# ---- sizes ----


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 300), (16, 33), (65, 64), (130, 17), (140, 400)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (5, 1)])
@pytest.mark.parametrize(("dim", "value_dim"), [(2, 3), (8, 8), (33, 20), (72, 136)])
def test_shapes(rng, q_len, kv_len, heads, kv_heads, dim, value_dim):
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "value_dim": value_dim}
    arrays = inputs(rng, batch=max(2, 24 // q_len), q_len=q_len, kv_len=kv_len, **sizes)
    check_backward(*arrays, sinks=np.linspace(-1, 1, heads))


@pytest.mark.parametrize("length", [*range(2, 18), 31, 63, 95, 127, 193])
def test_lengths_with_tails(rng, length):
    check_backward(
        *inputs(rng, batch=4, q_len=length, kv_len=length, dim=9, value_dim=5), causal=True, **SINKS
    )


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 35])
def test_dims_with_tails(rng, dim):
    check_backward(
        *inputs(rng, dim=dim, value_dim=36 - dim, q_len=18, kv_len=50), causal="bottom_right", **SINKS
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("empty", ["batch", "q_len", "kv_len", "value_dim"])
def test_a_size_of_zero(rng, dtype, empty):
    arrays = inputs(rng, dtype, **{empty: 0})
    bias = {"bias": rng.standard_normal((4, 1, 0 if empty == "kv_len" else 53)).astype(dtype)}
    grads = check_backward(*arrays, **bias, **SINKS)
    if empty != "value_dim":
        assert not any(grad.any() for grad in grads.values())


# ---- options ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(rng, dtype, name):
    grads = check_backward(*inputs(rng, dtype), **option(rng, name, dtype))
    assert all(grad.any() for grad in grads.values())


@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
@pytest.mark.parametrize("name", ["mask", "window", "kv_lengths", "softcap", "alibi", "all together"])
@pytest.mark.parametrize(("q_len", "kv_len"), [(37, 53), (53, 37), (150, 210)])
def test_options_with_a_diagonal(rng, name, causal, q_len, kv_len):
    sizes = {"q_len": q_len, "kv_len": kv_len}
    check_backward(*inputs(rng, **sizes), **(option(rng, name, **sizes) | {"causal": causal}))


@pytest.mark.parametrize("window", [(0, 0), (70, 0), (150, 13), (None, 5), (5, None)], ids=str)
def test_windows_over_many_keys(rng, window):
    check_backward(*inputs(rng, batch=1, q_len=290, kv_len=430), window=window, **SINKS)


@pytest.mark.parametrize(
    "shape",
    [(), *itertools.product((2, 1), (4, 1), (37, 1), (53, 1)), (37, 53), (53,), (1,), (4, 1, 53)],
    ids=str,
)
def test_a_bias_of_any_shape(rng, shape):
    """With sinks: without them a sum over all keys is 0 but for the rounding, which says nothing."""
    bias = rng.standard_normal(shape).astype(np.float32)
    check_backward(*inputs(rng), bias=bias, **SINKS)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_float32_bias_has_a_float32_gradient(rng, dtype):
    bias = rng.standard_normal((37, 53)).astype(np.float32)
    assert check_backward(*inputs(rng, dtype), bias=bias)["bias"].dtype == np.float32


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.3, 3.0])
def test_scale(rng, scale):
    check_backward(*inputs(rng), scale=scale)


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_softcap(rng, softcap):
    grad_out, query, key, value = inputs(rng)
    check_backward(grad_out, query * 5, key, value, softcap=softcap, causal="bottom_right")


def test_rows_without_keys_have_no_gradient_and_give_none(rng):
    grad_out, query, key, value = inputs(rng)
    mask = rng.random((37, 53)) < 0.5
    mask[[0, 4, 16, 36]] = False
    grads = check_backward(grad_out, query, key, value, mask=mask, **SINKS)
    assert not grads["query"][:, :, [0, 4, 16, 36]].any()
    query[:, :, [0, 4, 16, 36]] = grad_out[:, :, [0, 4, 16, 36]] = np.nan
    again = backward(grad_out, query, key, value, mask=mask, **SINKS)
    for name in ("key", "value", "sinks"):
        assert_same_bits(again[name], grads[name])
    nothing = backward(grad_out, query, key, value, mask=np.zeros((37, 53), bool), **SINKS)
    assert not any(grad.any() for grad in nothing.values())


# ---- what is broadcast ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "leading", [((3,), (1,), ()), ((), (3,), (1,)), ((2, 1), (1, 3), (3,)), ((), (), (2,)), ((), (), ())]
)
def test_leading_dimensions(rng, dtype, leading):
    tails = (4, 9, 12), (2, 21, 12), (2, 21, 7)
    shapes = [first + tail for first, tail in zip(leading, tails, strict=True)]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    grads = check_backward(grad_like_out(rng, *arrays), *arrays, **SINKS)
    assert [grads[name].shape for name in QKV] == shapes


def test_many_items_of_one_key_are_summed_in_more_than_half_precision(rng):
    grad_out, query, key, value = inputs(rng, np.float16, batch=500, q_len=2, kv_len=9)
    check_backward(grad_out, query, key[:1], value[:1])
    check_backward(grad_out, query[:1], key, value)


# ---- which gradients ----


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_need_gives_the_same_bits(rng, dtype):
    arrays, options = inputs(rng, dtype), option(rng, "all together", dtype)
    together = backward(*arrays, **options)
    assert tuple(together) == EVERY
    for count in range(7):
        for need in itertools.combinations(EVERY[::-1], count):
            some = backward(*arrays, **options, need=list(need))
            assert tuple(some) == need
            for name, grad in some.items():
                assert_same_bits(grad, together[name])


def test_half_precision_is_rounded_once(rng):
    """What a half-width input gives is what its widened copy gives, rounded."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        arrays = inputs(rng, dtype, q_len=150, kv_len=300)
        wide = [array.astype(np.float32) for array in arrays]
        out, lse = selfattn.attention(*arrays[1:], causal="bottom_right", **SINKS, return_lse=True)
        options = {"causal": "bottom_right", "need": (*QKV, "sinks"), **SINKS}
        grads = selfattn.attention_backward(*arrays, out, lse, **options)
        expected = selfattn.attention_backward(*wide, out.astype(np.float32), lse, **options)
        for ours, same in zip(grads, expected, strict=True):
            assert_same_bits(ours, same.astype(ours.dtype))
        assert [grad.dtype for grad in grads] == [dtype, dtype, dtype, np.float32]


# ---- how arrays lie ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_layouts(rng, layout, dtype):
    arrays, options = inputs(rng, dtype), {"need": (*QKV, "bias"), "causal": "bottom_right"}
    bias = rng.standard_normal((4, 37, 53)).astype(dtype)
    out, lse = selfattn.attention(*arrays[1:], bias=bias, causal="bottom_right", return_lse=True)
    expected = selfattn.attention_backward(*arrays, out, lse, bias=bias, **options)
    *arrays, bias, out, lse = (LAYOUTS[layout](array) for array in (*arrays, bias, out, lse))
    grads = selfattn.attention_backward(*arrays, out, lse, bias=bias, **options)
    for ours, same in zip(grads, expected, strict=True):
        assert_same_bits(ours, same)


def test_the_other_byte_order(rng):
    arrays = inputs(rng)
    out, lse = selfattn.attention(*arrays[1:], return_lse=True)
    expected = selfattn.attention_backward(*arrays, out, lse)
    swapped = [array.astype(array.dtype.newbyteorder()) for array in (*arrays, out, lse)]
    for ours, same in zip(selfattn.attention_backward(*swapped), expected, strict=True):
        assert_same_bits(ours, same)


@pytest.mark.parametrize("fill", [0.25, 1.0])
def test_a_broadcast_gradient_of_the_output(rng, fill):
    """As a loss that is a sum or a mean gives it, with strides of 0."""
    grad_out, query, key, value = inputs(rng)
    constant = np.broadcast_to(np.float32(fill), grad_out.shape)
    ours = backward(constant, query, key, value)
    for name, expected in backward(constant.copy(), query, key, value).items():
        assert_same_bits(ours[name], expected)


def test_large_scores(rng):
    """Rows in which one key takes everything, and weights of others that are 0 in float32."""
    grad_out, query, key, value = inputs(rng)
    check_backward(grad_out, query * 20, key * 20, value, scale=0.5)
