# SPDX-License-Identifier: Apache-2.0
"""The kernels behind the layers, on every instruction set: linear, norms, activations; awkward sizes."""

import ml_dtypes
import numpy as np
import pytest
from support.accuracy import assert_same_bits

from selfattn import reference
from selfattn._native import pointwise as _pointwise
from selfattn._native import runtime as _runtime

pytestmark = pytest.mark.usefixtures("isa")
SIZES = (1, 2, 5, 7, 15, 16, 17, 47, 48, 49, 64, 65, 96, 97, 130)
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@pytest.mark.parametrize("rows", [0, 1, 5, 6, 7, 47, 49, 97, 193])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 63, 64, 65, 130])
def test_linear_is_exact_on_integers(rng, rows, width):
    """Sums of small integers have no rounding: any difference is a kernel that skipped or repeated a term."""
    for depth in (1, 3, 64, 383, 385, 800):
        x, weight = (
            rng.integers(-8, 9, shape).astype(np.float32) for shape in ((rows, depth), (depth, width))
        )
        bias = rng.integers(-8, 9, width).astype(np.float32)
        for turned in (weight, np.ascontiguousarray(weight.T).T):
            np.testing.assert_array_equal(_pointwise.linear(x, turned, bias, None, 2), x @ weight + bias)


@pytest.mark.parametrize("width", [16, 32, 48, 64, 449])
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_linear_of_every_number_of_few_rows(rng, width, precision):
    """Tiles of every height, and of panels more than threads: each is somebody's."""
    x, weight = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((19, 390), (390, width)))
    for rows in range(1, 20):
        y = _pointwise.linear(x[:rows], weight, None, None, 3, precision)
        np.testing.assert_array_equal(y, x[:rows] @ weight)


@pytest.mark.parametrize("depth", [16, 384, 1536])
def test_linear_rows_do_not_depend_on_each_other(rng, depth):
    x = rng.standard_normal((130, depth)).astype(np.float32)
    weight = rng.standard_normal((depth, 70)).astype(np.float32)
    together = _pointwise.linear(x, weight, None, "gelu", 1)
    for row in (0, 5, 6, 47, 48, 95, 96, 129):
        assert_same_bits(_pointwise.linear(x[row : row + 1], weight, None, "gelu", 3)[0], together[row])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_to_the_last_digits(name):
    """Against float64, from -12 to 12; relative, so that gelu's vanishing tail counts in full."""
    x = np.linspace(-12, 12, 20011, dtype=np.float32)
    ours = getattr(_pointwise, name)(x)
    exact = getattr(reference, name)(x.astype(np.float64))
    bound = {"gelu": 8e-7, "gelu_tanh": 2e-5, "relu": 0, "silu": 1.5e-6}[name]
    if name == "gelu" and _runtime.active_isa() == "baseline":
        bound = 1e-5  # without fused multiply-adds the rounding errors of x^2 are lost
    absolute = 1e-14 if name == "gelu_tanh" else 1e-37  # 1 + tanh has no digits left in its own tail
    np.testing.assert_allclose(ours, exact, rtol=bound, atol=absolute)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_the_ends_of_the_range(name):
    function = getattr(_pointwise, name)
    huge = np.array([-3e38, -1e37, -1e3, 1e3, 1e37, 3e38, np.inf], np.float32)
    np.testing.assert_array_equal(function(huge), np.where(huge > 0, huge, 0))
    assert np.isnan(function(np.array([np.nan], np.float32))).all()
    assert function(np.zeros(0, np.float32)).shape == (0,)


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (100, 0.01), (1e4, 1), (0, 1e20)])
def test_norms_keep_their_digits(rng, width, mean, deviation):
    x = (mean + deviation * rng.standard_normal((5, width))).astype(np.float32)
    weight, bias = (rng.standard_normal(width).astype(np.float32) for _ in range(2))
    wide = [array.astype(np.float64) for array in (x, weight, bias)]
    actual = _pointwise.layer_norm(x, weight, bias, 1e-12, 1)
    np.testing.assert_allclose(actual, reference.layer_norm(*wide, eps=1e-12), rtol=3e-7, atol=3e-7)
    actual = _pointwise.rms_norm(x, weight, 1e-12, 1)
    np.testing.assert_allclose(actual, reference.rms_norm(*wide[:2], eps=1e-12), rtol=3e-7, atol=3e-7)


def test_the_same_bits_on_every_instruction_set_with_fma(rng):
    x = rng.standard_normal((37, 97)).astype(np.float32)
    weight, bias = (
        rng.standard_normal((97, 50)).astype(np.float32),
        rng.standard_normal(50).astype(np.float32),
    )

    def everything():
        y = [_pointwise.linear(x, weight, bias, name, 1) for name in (None, *ACTIVATIONS)]
        return [*y, _pointwise.layer_norm(x, x[0], x[1], 1e-5, 1), _pointwise.rms_norm(x, x[0], 1e-5, 1)]

    names = [name for name in _runtime.available_isas() if name != "baseline"]
    before, results = _runtime.active_isa(), []
    for name in names:
        _runtime.use_isa(name)
        results.append(everything())
    _runtime.use_isa(before)
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            assert_same_bits(ours, theirs)


# ---- products of bfloat16 ----


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 47, 49, 97])
@pytest.mark.parametrize("width", [1, 16, 17, 63, 65, 130])
def test_linear_of_bfloat16_is_exact_on_small_integers(rng, rows, width):
    """What bfloat16 holds is not rounded: a pair that was lost, doubled or torn apart shows."""
    for depth in (0, 1, 2, 15, 31, 32, 33, 384, 385, 801):
        x, weight = (
            rng.integers(-8, 9, shape).astype(np.float32) for shape in ((rows, depth), (depth, width))
        )
        bias = rng.integers(-8, 9, width).astype(np.float32)
        expected = np.maximum(x @ weight + bias, 0)
        for turned in (weight, np.ascontiguousarray(weight.T).T, np.repeat(weight, 2, axis=1)[:, ::2]):
            np.testing.assert_array_equal(_pointwise.linear(x, turned, bias, "relu", 2, "bfloat16"), expected)


def test_linear_of_bfloat16_rounds_what_it_multiplies(rng):
    """Where the processor has such products; elsewhere all is float32."""
    x = rng.standard_normal((50, 300)).astype(np.float32)
    weight = rng.standard_normal((300, 70)).astype(np.float32)
    rounded = [a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in (x, weight)]
    y, plain = (_pointwise.linear(x, weight, None, None, 2, precision) for precision in ("bfloat16", None))
    if np.array_equal(y, plain):
        assert _runtime.multiply_add("bfloat16", 100) == _runtime.multiply_add(None, 100)  # as many
    else:
        np.testing.assert_allclose(y, rounded[0] @ rounded[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("depth", [16, 385, 1536])
def test_rows_of_bfloat16_do_not_depend_on_each_other(rng, depth):
    x = rng.standard_normal((130, depth)).astype(np.float32)
    weight = rng.standard_normal((depth, 70)).astype(np.float32)
    together = _pointwise.linear(x, weight, None, "gelu", 1, "bfloat16")
    for row in (0, 5, 6, 47, 48, 95, 96, 129):
        assert_same_bits(
            _pointwise.linear(x[row : row + 1], weight, None, "gelu", 1, "bfloat16")[0], together[row]
        )
    assert_same_bits(_pointwise.linear(x, weight, None, "gelu", 3, "bfloat16"), together)
