# SPDX-License-Identifier: Apache-2.0
"""The layers' arithmetic as functions: every dtype, shape and layout, and what is refused."""

import ml_dtypes
import numpy as np
import pytest
from support.arrays import LAYOUTS

import selfattn
from selfattn import functional, reference

pytestmark = pytest.mark.usefixtures("isa")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
HALF_ULP = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
FUNCTIONS = (*ACTIVATIONS, "layer_norm", "rms_norm")  # of one array

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
narrow = pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def wide(array):
    return None if array is None else array.astype(np.float64)


def assert_same_bits(actual, expected):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert actual.tobytes() == expected.tobytes()


def assert_close(actual, exact, computed, smallest=0.0):
    """One rounding to the dtype of the result, on top of the error that it was computed with."""
    assert actual.shape == exact.shape
    relative = computed + HALF_ULP[actual.dtype.name]
    if actual.dtype == np.float16:
        smallest += 2.0**-25  # half the distance of its subnormal numbers
    np.testing.assert_allclose(wide(actual), exact, rtol=relative, atol=smallest)


# ---- accuracy ----


@every_dtype
@every_activation
def test_activations_against_the_reference(name, dtype):
    x = np.linspace(-6, 6, 3001).astype(dtype)
    y = getattr(functional, name)(x)
    assert y.dtype == dtype
    bound = {"gelu": 8e-7, "gelu_tanh": 2e-5, "relu": 0, "silu": 1.5e-6}[name]
    if name == "gelu" and selfattn.active_isa() == "baseline":
        bound = 1e-5  # without fused multiply-adds the rounding errors of x^2 are lost
    exact = getattr(reference, name)(wide(x))
    tail = 1e-14 if name == "gelu_tanh" else 1e-37  # the reference's 1 + tanh has no digits left there
    assert_close(y, exact, min(bound, 1e-13) if dtype == np.float64 else bound, tail)


@every_dtype
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_against_the_reference(rng, dtype, weight, bias):
    x = (5 + 2 * rng.standard_normal((4, 3, 50))).astype(dtype)
    gain = rng.standard_normal(50).astype(dtype) if weight else None
    shift = rng.standard_normal(50).astype(dtype) if bias else None
    y = functional.layer_norm(x, gain, shift, eps=1e-3)
    assert y.dtype == dtype
    ones = np.ones(50)
    exact = reference.layer_norm(wide(x), ones if gain is None else wide(gain), wide(shift), eps=1e-3)
    computed = 1e-14 if dtype == np.float64 else 3e-7
    assert_close(y, exact, computed, computed)


@every_dtype
@pytest.mark.parametrize("weight", [True, False])
def test_rms_norm_against_the_reference(rng, dtype, weight):
    x = rng.standard_normal((4, 3, 50)).astype(dtype)
    gain = rng.standard_normal(50).astype(dtype) if weight else None
    y = functional.rms_norm(x, gain, eps=1e-3)
    assert y.dtype == dtype
    exact = reference.rms_norm(wide(x), np.ones(50) if gain is None else wide(gain), eps=1e-3)
    assert_close(y, exact, 1e-14 if dtype == np.float64 else 3e-7)


def test_eps_has_the_default_of_the_reference(rng):
    x = 1e-3 * rng.standard_normal((5, 16))
    np.testing.assert_allclose(functional.layer_norm(x), reference.layer_norm(x, np.ones(16)), rtol=1e-12)
    np.testing.assert_allclose(functional.rms_norm(x), reference.rms_norm(x, np.ones(16)), rtol=1e-12)


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_exact_on_integers(rng, dtype, bias):
    """Their sums have no rounding but the last: a result that is too large for the dtype's digits."""
    x, weight, shift = (rng.integers(-8, 9, shape).astype(dtype) for shape in ((2, 3, 70), (70, 33), (33,)))
    exact = wide(x) @ wide(weight) + (wide(shift) if bias else 0)
    assert_same_bits(functional.linear(x, weight, shift if bias else None), exact.astype(dtype))


@every_dtype
def test_linear_against_the_reference(rng, dtype):
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((37, 200), (200, 30)))
    exact = reference.linear(wide(x), wide(weight))
    rounding = HALF_ULP["float64" if dtype == np.float64 else "float32"]
    most = 20 * rounding * np.abs(wide(x)) @ np.abs(wide(weight)) + HALF_ULP[dtype.name] * np.abs(exact)
    assert (np.abs(wide(functional.linear(x, weight)) - exact) <= most).all()


@every_dtype
@every_activation
def test_linear_with_an_activation_is_the_two_in_turn(rng, name, dtype):
    """On integers, where nothing is rounded between the two."""
    x, weight = (rng.integers(-2, 3, shape).astype(dtype) for shape in ((9, 20), (20, 33)))
    between = functional.linear(x, weight)
    together = functional.linear(x, weight, activation=name)
    assert_same_bits(together, getattr(functional, name)(between))


@narrow
@every_function
def test_narrow_floats_are_float32_rounded_once(rng, name, dtype):
    x = (2 * rng.standard_normal((7, 33))).astype(dtype)
    function = getattr(functional, name)
    assert_same_bits(function(x), function(x.astype(np.float32)).astype(dtype))


@narrow
def test_parameters_may_be_float32(rng, dtype):
    """As they often are beside narrow activations; they are not rounded to the dtype of x."""
    x, weight, bias = rng.standard_normal((3, 5, 5)).astype(np.float32)
    x = x.astype(dtype)
    precise = functional.linear(x.astype(np.float32), weight, bias[0])
    assert_same_bits(functional.linear(x, weight, bias[0]), precise.astype(dtype))
    precise = functional.layer_norm(x.astype(np.float32), weight[0], bias[0])
    assert_same_bits(functional.layer_norm(x, weight[0], bias[0]), precise.astype(dtype))


def test_float32_parameters_of_float64(rng):
    x = rng.standard_normal((4, 6))
    gain = rng.standard_normal(6).astype(np.float32)
    assert_same_bits(functional.rms_norm(x, gain), functional.rms_norm(x, wide(gain)))


def test_float16_overflows_to_infinity():
    x = np.full((1, 2), 300, np.float16)
    np.testing.assert_array_equal(functional.linear(x, x.T), np.float16(np.inf))
    np.testing.assert_array_equal(functional.linear(-x, x.T), np.float16(-np.inf))


# ---- NaN and Inf ----


@every_dtype
@every_activation
def test_activations_at_the_ends(name, dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    x = np.array([-largest, np.nan, 0, largest, np.inf]).astype(dtype)
    y = wide(getattr(functional, name)(x))
    np.testing.assert_array_equal(y, [0, np.nan, 0, largest, np.inf])


@every_dtype
@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_activations_of_minus_infinity(name, dtype):
    assert getattr(functional, name)(np.array([-np.inf], dtype)) == 0


@every_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_stay_in_their_row(rng, dtype, bad):
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((6, 20), (20, 20)))
    spoiled = x.copy()
    spoiled[4, 11] = bad
    others = [0, 1, 2, 3, 5]
    for function in (functional.layer_norm, functional.rms_norm, lambda x: functional.linear(x, weight)):
        clean, y = function(x), function(spoiled)
        assert_same_bits(y[others], clean[others])
        assert not np.isfinite(wide(y[4, 11]))


def test_infinities_go_through_a_linear_layer():
    x = np.array([[1, np.inf], [1, -np.inf]], np.float32)
    weight = np.array([[1, 1, 1], [2, -2, 0]], np.float32)
    expected = [[np.inf, -np.inf, np.nan], [-np.inf, np.inf, np.nan]]
    np.testing.assert_array_equal(functional.linear(x, weight), expected)


# ---- shapes and layouts ----


@every_dtype
@every_function
@pytest.mark.parametrize("shape", [(7,), (0,), (1, 1), (3, 0), (0, 3), (2, 1, 3, 1, 2, 5)])
def test_shapes(rng, name, dtype, shape):
    x = rng.standard_normal(shape).astype(dtype)
    function = getattr(functional, name)
    y = function(x)
    assert (y.shape, y.dtype) == (shape, dtype)
    rows = x.reshape(-1, shape[-1]) if x.size else x
    for row, out in zip(rows, y.reshape(rows.shape), strict=True):
        assert_same_bits(np.atleast_1d(function(np.atleast_1d(row))), np.atleast_1d(out))


@every_dtype
@every_activation
def test_activations_of_rank_0(name, dtype):
    x = np.array(1.5, dtype)
    y = getattr(functional, name)(x)
    assert (y.shape, y.dtype) == ((), dtype)
    assert y == getattr(functional, name)(x[None])[0]


@every_dtype
@pytest.mark.parametrize("leading", [(), (1,), (0,), (4,), (2, 0, 3), (2, 1, 1, 1, 3)])
@pytest.mark.parametrize(("d_in", "d_out"), [(5, 3), (1, 1), (5, 0), (0, 3), (0, 0)])
def test_shapes_of_linear(rng, dtype, leading, d_in, d_out):
    x, weight = rng.integers(-3, 4, (*leading, d_in)), rng.integers(-3, 4, (d_in, d_out))
    bias = rng.integers(1, 4, d_out)
    y = functional.linear(x.astype(dtype), weight.astype(dtype), bias.astype(dtype))
    assert_same_bits(y, (x @ weight + bias).astype(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_layouts_change_no_bit(rng, layout, dtype):
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 3, 34), (2, 34, 35)))
    bias = rng.standard_normal((2, 35)).astype(dtype)
    expected = functional.linear(x, weight[1], bias[1])
    lie = LAYOUTS[layout]
    assert_same_bits(functional.linear(lie(x), lie(weight)[1], _vector(lie, bias[1])), expected)
    for name in ACTIVATIONS:
        assert_same_bits(getattr(functional, name)(lie(x)), getattr(functional, name)(x))
    gain, shift = weight[0, :, 0], weight[1, :, 1]
    expected = functional.layer_norm(x, gain, shift)
    assert_same_bits(functional.layer_norm(lie(x), _vector(lie, gain), _vector(lie, shift)), expected)
    assert_same_bits(functional.rms_norm(lie(x), _vector(lie, gain)), functional.rms_norm(x, gain))


def _vector(lie, vector):
    """A vector whose elements lie as a matrix's do."""
    return lie(np.stack([vector, vector])[None])[0, 1]


def test_inputs_are_left_alone(rng):
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 4), (4,)))
    before = [array.copy() for array in (x, weight, bias)]
    for name in ACTIVATIONS:
        assert not np.shares_memory(getattr(functional, name)(x), x)
        functional.linear(x, weight, bias, activation=name)
    functional.layer_norm(x, bias, bias)
    functional.rms_norm(x, bias)
    for array, copy in zip((x, weight, bias), before, strict=True):
        assert_same_bits(array, copy)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
def test_the_other_byte_order(rng, dtype):
    x = rng.standard_normal((3, 20))
    native = np.dtype(dtype).newbyteorder("=")
    for name in FUNCTIONS:
        function = getattr(functional, name)
        assert_same_bits(function(x.astype(dtype)), function(x.astype(native)))


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)


@pytest.mark.parametrize("form", [Foreign, memoryview])
def test_arrays_of_other_libraries(rng, form):
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 4)))
    gain = weight[0].copy()
    assert_same_bits(functional.linear(form(x), form(weight), form(gain)), functional.linear(x, weight, gain))
    assert_same_bits(functional.layer_norm(form(x), form(gain)), functional.layer_norm(x, gain))
    assert_same_bits(functional.silu(form(x)), functional.silu(x))


@every_dtype
def test_the_number_of_threads_changes_no_bit(rng, dtype):
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((301, 130), (130, 131)))
    for function in (
        *(getattr(functional, name) for name in FUNCTIONS),
        lambda x, **how: functional.linear(x, weight, activation="gelu", **how),
    ):
        alone = function(x, num_threads=1)
        assert_same_bits(function(x, num_threads=3), alone)
        with selfattn.threads(2):
            assert_same_bits(function(x), alone)


def test_precision_of_linear(rng):
    x, weight = (
        rng.integers(-8, 9, (5, 40)).astype(np.float16),
        rng.integers(-8, 9, (40, 7)).astype(np.float16),
    )
    assert_same_bits(functional.linear(x, weight, precision="bfloat16"), functional.linear(x, weight))
    with pytest.raises(ValueError, match="float64"):
        functional.linear(x.astype(np.float64), weight.astype(np.float64), precision="bfloat16")
    with pytest.raises(ValueError, match="float16"):
        functional.linear(x, weight, precision="float16")
