# SPDX-License-Identifier: Apache-2.0
"""What went wrong elsewhere in products, norms and activations, each with the thread that tells of it."""

import threading

import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.arrays import qkv
from support.guard import guarded

import selfattn
from selfattn import functional, reference

pytestmark = pytest.mark.usefixtures("isa")


def normal(rng, *shapes, dtype=np.float32):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def exact(function, *arrays, **options):
    return function(*(array.astype(np.float64) for array in arrays), **options)


# ---- products and softmax ----


@pytest.mark.parametrize("depth", range(1, 34))
def test_nan_in_one_row_of_a_product_stays_in_it(rng, depth):
    """oneDNN#5717: with a depth that is no multiple of 32, NaN of one row reached others through the tail."""
    x, weight = normal(rng, (50, depth), (depth, 19))
    x[17, depth - 1] = np.nan
    y = functional.linear(x, weight)
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), np.arange(50) == 17)
    np.testing.assert_array_equal(np.isnan(y).any(axis=1), np.arange(50) == 17)
    out = selfattn.attention(x[None], x[None], x[None], mask=np.eye(50, dtype=bool))
    np.testing.assert_array_equal(np.isnan(out[0]).any(axis=1), np.arange(50) == 17)


def test_equal_rows_and_columns_give_equal_results(rng):
    """oneDNN#1486: one matrix times equal columns gave unequal ones, in a tile and in the tail."""
    row, column = normal(rng, (301,), (301,))
    y = functional.linear(np.tile(row, (53, 1)), np.tile(column[:, None], (1, 67)))
    assert len(np.unique(y)) == 1
    query, key, value = np.tile(row, (1, 53, 1)), np.tile(column, (1, 67, 1)), np.tile(row, (1, 67, 1))
    out, lse = selfattn.attention(query, key, value, return_lse=True)
    assert_same_bits(out, np.broadcast_to(out[:, :1], out.shape))
    assert len(np.unique(lse)) == 1


def test_the_same_product_again_and_again(rng):
    """tensorflow#61510: a large product varied from run to run, with AVX-512 VNNI."""
    x, weight = (
        rng.standard_normal((70, 1200)).astype(np.float32),
        rng.standard_normal((1200, 90)).astype(np.float32),
    )
    first = functional.linear(x, weight)
    for _ in range(20):
        assert_same_bits(functional.linear(x, weight), first)


def test_a_product_of_63_by_80(rng):
    """oneDNN#1661, openvino#38256: 63 by 80 ended the process, another size was wrong; integers are exact."""
    x, weight = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((128, 63), (63, 80)))
    np.testing.assert_array_equal(functional.linear(x, weight), x @ weight)


@pytest.mark.parametrize("n", range(1, 18))
@pytest.mark.parametrize("at_end", [True, False])
def test_tails_at_the_end_of_a_page(rng, n, at_end):
    """XNNPACK#1003, #4190, #10199, #9982, blis#635, nntrainer#4345: a softmax over 3 numbers read 4."""
    for dtype in (np.float32, np.float64, np.float16):
        shapes = (1, 2, n), (1, n, n), (1, n), (3, n), (n, n)
        query, key, bias, x, weight = normal(rng, *shapes, dtype=dtype)
        beside = [guarded(array, at_end=at_end) for array in (query, key, bias, x, weight)]
        expected = selfattn.attention_weights(query, key, bias=bias)
        assert_same_bits(selfattn.attention_weights(*beside[:2], bias=beside[2]), expected)
        for function in (functional.layer_norm, functional.rms_norm):
            assert_same_bits(function(beside[3], beside[4][0]), function(x, weight[0]))
        assert_same_bits(functional.linear(*beside[3:]), functional.linear(x, weight))
        assert_same_bits(functional.gelu(beside[3]), functional.gelu(x))


@pytest.mark.parametrize("q_len", [1, 5, 16, 33, 70])
def test_what_memory_held_before_does_not_show(rng, q_len):
    """OpenBLAS#2534, #746, #929, rten#81: NaN that the output or the scratch held before came out again."""
    query, key, value = qkv(rng, q_len=q_len, kv_len=37)
    expected = selfattn.attention(query, key, value)
    selfattn.attention(*(np.full((2, 2, 200, 64), np.nan, np.float32),) * 3)
    assert_same_bits(selfattn.attention(query, key, value, out=np.full_like(query, np.nan)), expected)


def test_products_of_several_threads_at_once(rng):
    """OpenBLAS#1755, #2126, #4345, #5825: products of several calling threads mixed their numbers."""
    x, weight = (
        rng.standard_normal((4, 60, 200)).astype(np.float32),
        rng.standard_normal((200, 90)).astype(np.float32),
    )
    expected = functional.linear(x, weight)
    results = [[] for _ in x]

    def multiply(i):
        results[i].extend(functional.linear(x[i], weight) for _ in range(20))

    callers = [threading.Thread(target=multiply, args=(i,)) for i in range(len(x))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for i, products in enumerate(results):
        assert len(products) == 20
        for product in products:
            assert_same_bits(product, expected[i])


# ---- norms and activations ----


@pytest.mark.parametrize(
    ("mean", "deviation", "width"), [(2000, 1, 4), (100, 0.01, 32768), (1449, 1e-3, 64), (1, 9.8e-4, 768)]
)
def test_layer_norm_of_a_large_mean(rng, mean, deviation, width):
    """pytorch#51102, #40307, #190491, mlx#2238: a variance small beside the mean became 0 or NaN."""
    x = (mean + deviation * rng.standard_normal((3, width))).astype(np.float32)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    expected = exact(reference.layer_norm, x, ones, zeros, eps=1e-12)
    np.testing.assert_allclose(
        functional.layer_norm(x, ones, zeros, eps=1e-12), expected, rtol=1e-6, atol=1e-6
    )


def test_layer_norm_of_40000_and_3_more():
    """onnxruntime#28463: [40000 .. 40003] gave NaN, from a negative variance."""
    x = np.arange(40000, 40004, dtype=np.float32)[None]
    expected = exact(reference.layer_norm, x, np.ones(4), np.zeros(4))
    np.testing.assert_allclose(functional.layer_norm(x), expected, rtol=1e-6)


@pytest.mark.parametrize("constant", [1234.0, 0.1, 1e20, -7.7])
@pytest.mark.parametrize("width", [3, 17, 768, 1000])
def test_layer_norm_of_constant_rows(constant, width):
    """onnxruntime#21935, pytorch#108072: rows of one number gave NaN, or not zeros."""
    x = np.full((2, width), constant, np.float32)
    assert not functional.layer_norm(x).any()
    bias = np.arange(width, dtype=np.float32)
    np.testing.assert_array_equal(functional.layer_norm(x, np.ones_like(bias), bias), np.tile(bias, (2, 1)))


def test_norms_of_1e20(rng):
    """The squares of 1e20 overflow float32: PyTorch, ONNX Runtime and OpenVINO normalise such rows to 0."""
    x = (1e20 * rng.standard_normal((3, 40))).astype(np.float32)
    ones = np.ones(40)
    expected = exact(reference.layer_norm, x, ones, np.zeros(40))
    np.testing.assert_allclose(functional.layer_norm(x), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        functional.rms_norm(x), exact(reference.rms_norm, x, ones), rtol=1e-6, atol=1e-6
    )


def test_activations_of_the_largest_float():
    """onnxruntime#27923: the largest float through an activation came out as 0."""
    x = np.array([-np.finfo(np.float32).max, np.finfo(np.float32).max], np.float32)
    for activation in (functional.gelu, functional.gelu_tanh, functional.silu, functional.relu):
        np.testing.assert_array_equal(activation(x), np.maximum(x, 0))
