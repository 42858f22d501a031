# SPDX-License-Identifier: Apache-2.0
"""What the functions of selfattn.functional refuse, and how they say it."""

import ml_dtypes
import numpy as np
import pytest

from selfattn import functional

FUNCTIONS = ("gelu", "gelu_tanh", "relu", "silu", "layer_norm", "rms_norm")  # of one array
every_function = pytest.mark.parametrize("name", FUNCTIONS)

X = np.ones((2, 3), np.float32)
W = np.ones((3, 4), np.float32)


@every_function
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, 2.0]], "x is a list; it must be a NumPy array"),
        (None, "x is None"),
        (np.ones((2, 3), np.int32), r"x has dtype int32; .*bfloat16: x\.astype\(np\.float32\)"),
        (np.ones((2, 3), bool), "x has dtype bool"),
        (np.ones((2, 3), complex), "x has dtype complex128"),
        (np.ones((2, 3), object), "x has dtype object"),
        (np.ma.masked_array(X, X > 0), "x is a masked array"),
    ],
    ids=["list", "None", "int32", "bool", "complex", "object", "masked"],
)
def test_not_an_array_of_floats(name, x, message):
    with pytest.raises(TypeError, match=message):
        getattr(functional, name)(x)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_a_norm_needs_an_axis(name):
    with pytest.raises(ValueError, match=r"x has shape \(\); .*x\[None\]"):
        getattr(functional, name)(np.array(1.0))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_a_norms_weight_fits(name):
    function = getattr(functional, name)
    with pytest.raises(ValueError, match=r"weight has shape \(4,\); it needs \(3,\)"):
        function(X, np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"weight has shape \(1, 3\); it needs \(3,\)"):
        function(X, np.ones((1, 3), np.float32))
    with pytest.raises(TypeError, match="weight has dtype float64, x float32"):
        function(X, np.ones(3))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(
    ("eps", "error"), [(-1e-5, ValueError), (np.nan, ValueError), (np.inf, ValueError), ("small", TypeError)]
)
def test_eps_is_a_number_from_0_on(name, eps, error):
    with pytest.raises(error, match="eps="):
        getattr(functional, name)(X, eps=eps)


def test_a_bias_fits():
    with pytest.raises(ValueError, match=r"bias has shape \(3,\); it needs \(4,\)"):
        functional.linear(X, W, np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"bias has shape \(4,\); it needs \(3,\)"):
        functional.layer_norm(X, None, np.ones(4, np.float32))
    with pytest.raises(TypeError, match="bias has dtype float16, x float32; bias must be as x, or float32"):
        functional.linear(X, W, np.ones(4, np.float16))
    with pytest.raises(TypeError, match="bias has dtype int64"):
        functional.linear(X, W, np.ones(4, np.int64))


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (np.ones((2, 4), np.float32), W, r"x has shape \(2, 4\); its last dimension must be d_in=3"),
        (np.ones((), np.float32), W, r"x has shape \(\); its last dimension must be d_in=3"),
        (X, W[0], r"weight has shape \(4,\); it needs \(d_in, d_out\)"),
        (X, W[None], r"weight has shape \(1, 3, 4\); it needs \(d_in, d_out\)"),
    ],
)
def test_the_shapes_of_linear_fit(x, weight, message):
    with pytest.raises(ValueError, match=message):
        functional.linear(x, weight)


def test_the_dtypes_of_linear_fit():
    with pytest.raises(TypeError, match="weight has dtype bfloat16, x float16"):
        functional.linear(X.astype(np.float16), W.astype(ml_dtypes.bfloat16))
    with pytest.raises(TypeError, match="weight has dtype int8"):
        functional.linear(X, W.astype(np.int8))


@pytest.mark.parametrize("activation", ["tanh", "GELU", "", 7, ["gelu"]])
def test_an_unknown_activation(activation):
    with pytest.raises(
        ValueError, match=r'activation=.* must be "gelu", "gelu_tanh", "relu", "silu" or None'
    ):
        functional.linear(X, W, activation=activation)


@every_function
@pytest.mark.parametrize(("num_threads", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_num_threads_is_a_number_of_threads(name, num_threads, error):
    with pytest.raises(error, match="num_threads="):
        getattr(functional, name)(X, num_threads=num_threads)
