# SPDX-License-Identifier: Apache-2.0
"""The ..._backward of selfattn.functional: every gradient, dtype, shape and layout, and what is refused."""

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import assert_as_exact_as_numpy, assert_same_bits
from support.arrays import LAYOUTS
from support.attention_gradients import central_differences
from support.bits import on_every_isa_with_fma

from selfattn import functional
from selfattn.reference import layers as reference

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
ACTIVATIONS = tuple(reference.ACTIVATIONS)

on_every_isa = pytest.mark.usefixtures("isa")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
wide_dtypes = pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
narrow = pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def normal(rng, dtype, *shapes):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def wide(arrays):
    """One precision more than the dtype has; the reference's functions of float64 stay float64."""
    return [array.astype(np.longdouble if array.dtype == np.float64 else np.float64) for array in arrays]


def backward(name):
    return getattr(functional, f"{name}_backward")


def linear_backward(grad_y, x, weight, **how):
    return functional.linear_backward(grad_y, x, weight, bias=True, **how)


def gate_backward(grad_y, gate, up, **how):
    return functional.gate_backward(grad_y, gate, up, "silu", **how)


def every_gradient(rng, dtype, rows=5, width=33):
    """(name, function, arguments) of each, grad_y first; results are one gradient or a tuple of them."""
    grad_y, x, up = normal(rng, dtype, *[(rows, width)] * 3)
    scale, inner, weight = normal(rng, dtype, width, (rows, 20), (20, width))
    yield from ((name, backward(name), (grad_y, x)) for name in ACTIVATIONS)
    yield "gate", gate_backward, (grad_y, x, up)
    yield "layer_norm", functional.layer_norm_backward, (grad_y, x, scale)
    yield "rms_norm", functional.rms_norm_backward, (grad_y, x, scale)
    yield "linear", linear_backward, (grad_y, inner, weight)
    yield "column_sums", functional.column_sums, (grad_y,)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def assert_all_same_bits(actual, expected):
    for ours, theirs in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert_same_bits(ours, theirs)


# ---- the specification, by its definition ----


def assert_slopes(function, grad_y, arguments, gradients):
    """gradients: of sum(grad_y * function(...)), by central differences in each argument."""
    for i, (argument, gradient) in enumerate(zip(arguments, gradients, strict=True)):

        def loss(moved, i=i):
            return float((function(*arguments[:i], moved, *arguments[i + 1 :]) * grad_y).sum())

        assert gradient.shape == argument.shape
        np.testing.assert_allclose(gradient, central_differences(loss, argument), rtol=0, atol=3e-8)


@every_activation
def test_the_reference_of_activations(rng, name):
    grad_y, x, up = normal(rng, np.float64, (4, 9), (4, 9), (4, 9))
    act = reference.ACTIVATIONS[name]
    assert_slopes(act, grad_y, [x], [reference.ACTIVATIONS_BACKWARD[name](grad_y, x)])
    gradients = reference.gate_backward(grad_y, x, up, name)
    assert_slopes(lambda gate, up: act(gate) * up, grad_y, [x, up], gradients)


def test_the_reference_of_linear(rng):
    grad_y, *arguments = normal(rng, np.float64, (2, 3, 5), (2, 3, 4), (4, 5), 5)
    assert_slopes(reference.linear, grad_y, arguments, reference.linear_backward(grad_y, *arguments[:2]))


def test_the_reference_of_norms(rng):
    grad_y, x, weight, bias = normal(rng, np.float64, (2, 3, 7), (2, 3, 7), 7, 7)
    gradients = reference.layer_norm_backward(grad_y, x, weight, eps=1e-3)
    assert_slopes(
        lambda *arguments: reference.layer_norm(*arguments, eps=1e-3), grad_y, [x, weight, bias], gradients
    )
    gradients = reference.rms_norm_backward(grad_y, x, weight, eps=1e-3)
    assert_slopes(lambda *both: reference.rms_norm(*both, eps=1e-3), grad_y, [x, weight], gradients)


# ---- accuracy ----


@on_every_isa
@wide_dtypes
@every_activation
def test_activations_against_the_reference(name, dtype):
    """The slope within some roundings of 1, which is its size; of what decays to 0 the digits stay, too."""
    x = np.linspace(-15, 15, 6001).astype(dtype)
    slope = backward(name)(np.ones_like(x), x)
    exact = reference.ACTIVATIONS_BACKWARD[name](*wide([np.ones_like(x), x]))
    rounding = np.finfo(dtype).eps
    np.testing.assert_allclose(slope, exact.astype(np.float64), rtol=0, atol=4 * rounding)
    if name in ("gelu", "silu"):  # the reference of gelu_tanh has no digits there
        tail = (x < -2) & (x > -12)
        relative = 2e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(slope[tail], exact[tail].astype(np.float64), rtol=relative, atol=0)


@on_every_isa
@wide_dtypes
@every_activation
def test_gates_are_the_activation_and_its_slope(rng, name, dtype):
    grad_y, gate, up = normal(rng, dtype, *[(7, 33)] * 3)
    grad_gate, grad_up = functional.gate_backward(grad_y, gate, up, name)
    assert_same_bits(grad_gate, backward(name)(grad_y * up, gate))
    assert_same_bits(grad_up, grad_y * getattr(functional, name)(gate))


@on_every_isa
@wide_dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 5), (63, 16), (64, 33), (65, 100), (300, 7)])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_against_the_reference(rng, name, rows, width, dtype):
    grad_y, x, weight = normal(rng, dtype, (rows, width), (rows, width), width)
    x += dtype.type(3)
    gradients = backward(name)(grad_y, x, weight, eps=1e-3)
    expected = getattr(reference, f"{name}_backward")(*wide([grad_y, x, weight]), eps=1e-3)
    assert len(gradients) == len(expected)
    for gradient, exact in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        relative = 1e-14 if dtype == np.float64 else 1.2e-7  # computed in float64, rounded once
        scale = max(1.0, np.abs(exact).max())
        np.testing.assert_allclose(gradient, exact.astype(np.float64), rtol=0, atol=relative * scale)


def test_a_large_mean_costs_no_digits(rng):
    grad_y, x, weight = normal(rng, np.float32, (40, 64), (40, 64), 64)
    x += np.float32(1e4)
    gradients = functional.layer_norm_backward(grad_y, x, weight)
    expected = reference.layer_norm_backward(*wide([grad_y, x, weight]))
    for gradient, exact in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, exact, rtol=2e-7, atol=2e-7 * np.abs(exact).max())


@on_every_isa
@wide_dtypes
@pytest.mark.parametrize(
    ("leading", "d_in", "d_out"), [((1,), 1, 1), ((37,), 50, 30), ((3, 300), 65, 130), ((2, 500), 7, 200)]
)
def test_linear_against_the_reference(rng, leading, d_in, d_out, dtype):
    arguments = normal(rng, dtype, (*leading, d_out), (*leading, d_in), (d_in, d_out))
    naive = reference.linear_backward(*arguments)
    exact = reference.linear_backward(*wide(arguments))
    for gradient, same, wider in zip(linear_backward(*arguments), naive, exact, strict=True):
        assert_as_exact_as_numpy(gradient, same, wider)


@on_every_isa
@wide_dtypes
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("rows", "d_in", "d_out"),
    [
        (0, 5, 6),
        (5, 0, 6),
        (5, 6, 0),
        (383, 1, 64),
        (384, 48, 65),
        (385, 287, 16),
        (769, 289, 63),
        (999, 600, 129),
    ],
)
def test_the_gradient_of_a_weight_leaves_out_nothing(rng, rows, d_in, d_out, dtype, threads):
    """Sums of small integers have no rounding: a term that a block, a panel or a chain lost shows."""
    x, grad_y = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((rows, d_in), (rows, d_out)))
    weight = np.zeros((d_in, d_out), dtype)
    _, grad_weight, _ = functional.linear_backward(grad_y, x, weight, num_threads=threads)
    assert_same_bits(grad_weight, x.T @ grad_y)


@on_every_isa
@every_dtype
def test_linear_is_exact_on_integers(rng, dtype):
    grad_y, x, weight = (
        rng.integers(-4, 5, shape).astype(dtype) for shape in ((2, 3, 33), (2, 3, 70), (70, 33))
    )
    expected = reference.linear_backward(*wide([grad_y, x, weight]))
    for gradient, exact in zip(linear_backward(grad_y, x, weight), expected, strict=True):
        assert_same_bits(gradient, exact.astype(dtype))


@on_every_isa
@every_dtype
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
def test_column_sums_are_rounded_once(rng, rows, dtype):
    (x,) = normal(rng, dtype, (rows, 37))
    expected = np.zeros(37)
    for first in range(0, rows, 64):
        chunk = np.zeros(37)
        for row in x[first : first + 64].astype(np.float64):
            chunk += row
        expected += chunk
    via = np.float64 if dtype == np.float64 else np.float32
    assert_same_bits(functional.column_sums(x), expected.astype(via).astype(dtype))


# ---- dtypes ----


@narrow
def test_narrow_floats_are_float32_rounded_once(rng, dtype):
    for _, function, arguments in every_gradient(rng, dtype):
        precise = as_tuple(function(*(argument.astype(np.float32) for argument in arguments)))
        assert_all_same_bits(function(*arguments), tuple(gradient.astype(dtype) for gradient in precise))


@narrow
def test_gradients_have_the_dtype_of_what_they_are_of(rng, dtype):
    """Here of float32 weights beside narrow activations, with a float32 gradient coming in."""
    for name, function, arguments in every_gradient(rng, np.float32):
        if name in ("gate", "column_sums"):
            continue
        grad_y, x, *weight = arguments
        grad_x, *grads = as_tuple(function(grad_y, x.astype(dtype), *weight))
        assert grad_x.dtype == dtype
        assert all(grad.dtype == np.float32 for grad in grads)


@wide_dtypes
def test_a_norm_without_a_weight_has_ones(rng, dtype):
    grad_y, x = normal(rng, dtype, (4, 9), (4, 9))
    ones = np.ones(9, dtype)
    for function in (functional.layer_norm_backward, functional.rms_norm_backward):
        assert_all_same_bits(function(grad_y, x), function(grad_y, x, ones))


def test_a_bias_is_only_asked_for(rng):
    grad_y, x, weight = normal(rng, np.float32, (4, 9), (4, 5), (5, 9))
    with_bias, without = linear_backward(grad_y, x, weight), functional.linear_backward(grad_y, x, weight)
    assert without[2] is None
    assert_all_same_bits(without[:2], with_bias[:2])
    assert_same_bits(with_bias[2], functional.column_sums(grad_y))


# ---- NaN and Inf ----


@on_every_isa
@wide_dtypes
@every_activation
def test_slopes_at_the_ends(name, dtype):
    largest = np.finfo(dtype).max
    x = np.array([-np.inf, -largest, -1e4, np.nan, 1e4, largest, np.inf], dtype)
    np.testing.assert_array_equal(backward(name)(np.ones_like(x), x), [0, 0, 0, np.nan, 1, 1, 1])
    at_0 = 0 if name == "relu" else 0.5
    np.testing.assert_array_equal(backward(name)(np.ones(2, dtype), np.array([0, -0.0], dtype)), at_0)


@on_every_isa
@wide_dtypes
def test_nan_stays_in_its_row_and_column(rng, dtype):
    for name, function, (grad_y, *others) in every_gradient(rng, dtype):
        clean = as_tuple(function(grad_y, *others))
        spoiled = grad_y.copy()
        spoiled[3, 11] = np.nan
        for gradient, before in zip(as_tuple(function(spoiled, *others)), clean, strict=True):
            touched = np.zeros(gradient.shape, bool)
            if gradient.shape[0] != len(grad_y):  # of a parameter
                touched[..., 11] = True
            elif name in ("linear", "layer_norm", "rms_norm"):
                touched[3] = True
            else:
                touched[3, 11] = True
            np.testing.assert_array_equal(np.isnan(gradient), touched, name)
            assert_same_bits(gradient[~touched], before[~touched])


# ---- shapes and layouts ----


@on_every_isa
@wide_dtypes
@pytest.mark.parametrize(("rows", "width"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_sizes_of_zero(rng, rows, width, dtype):
    for name, function, arguments in every_gradient(rng, dtype, rows, width):
        gradients = as_tuple(function(*arguments))
        of_bias = [(width,)] if name in ("linear", "layer_norm", "column_sums") else []
        assert [gradient.shape for gradient in gradients] == [a.shape for a in arguments[1:]] + of_bias, name
        assert all(gradient.dtype == dtype for gradient in gradients)
        assert (rows and width) or not any(gradient.any() for gradient in gradients)


@wide_dtypes
def test_leading_dimensions_are_rows(rng, dtype):
    for name, function, arguments in every_gradient(rng, dtype, rows=12):
        split = [array.reshape(2, 1, 6, -1) if len(array) == 12 else array for array in arguments]
        expected = as_tuple(function(*arguments))
        for gradient, flat in zip(as_tuple(function(*split)), expected, strict=True):
            assert gradient.shape == ((2, 1, 6, *flat.shape[1:]) if len(flat) == 12 else flat.shape), name
            assert_same_bits(gradient.reshape(flat.shape), flat)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4"])
def test_layouts_change_no_bit(rng, layout, dtype):
    for _, function, arguments in every_gradient(rng, dtype):
        lying = [LAYOUTS[layout](np.stack([array, array])[None])[0, 1] for array in arguments]
        assert_all_same_bits(function(*lying), function(*arguments))


def test_inputs_are_left_alone(rng):
    for _, function, arguments in every_gradient(rng, np.float32):
        before = [array.copy() for array in arguments]
        gradients = as_tuple(function(*arguments))
        assert_all_same_bits(arguments, tuple(before))
        assert not any(np.shares_memory(gradient, array) for gradient in gradients for array in arguments)


# ---- bits ----


@wide_dtypes
@pytest.mark.parametrize(("rows", "width"), [(3, 5), (70, 33), (301, 131)])
def test_instruction_sets_agree(rng, rows, width, dtype):
    for _, function, arguments in every_gradient(rng, dtype, rows, width):
        first, *others = on_every_isa_with_fma(lambda: function(*arguments))  # noqa: B023 - called here
        for other in others:
            assert_all_same_bits(other, first)


@on_every_isa
@wide_dtypes
def test_the_number_of_threads_changes_no_bit(rng, dtype):
    for _, function, arguments in every_gradient(rng, dtype, rows=1003, width=150):
        alone = function(*arguments, num_threads=1)
        for num_threads in (2, 5):
            assert_all_same_bits(function(*arguments, num_threads=num_threads), alone)
