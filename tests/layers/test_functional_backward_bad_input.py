# SPDX-License-Identifier: Apache-2.0
"""What the ..._backward of selfattn.functional refuse, and how they say it."""

import numpy as np
import pytest

from selfattn import functional

X = np.ones((2, 3), np.float32)
W = np.ones((3, 4), np.float32)
FUNCTIONS = ("gelu", "gelu_tanh", "relu", "silu", "layer_norm", "rms_norm")  # of one array


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gradient_fits_its_function(name):
    function = getattr(functional, f"{name}_backward")
    with pytest.raises(ValueError, match=r"grad_y has shape \(3,\); it needs .* \(2, 3\)"):
        function(X[0], X)
    with pytest.raises(
        TypeError, match="grad_y has dtype float64, x float32; grad_y must be as x, or float32"
    ):
        function(X.astype(np.float64), X)
    with pytest.raises(TypeError, match="grad_y is a list"):
        function([1.0], X)
    with pytest.raises(TypeError, match="x has dtype int64"):
        function(X, X.astype(np.int64))
    with pytest.raises(ValueError, match="num_threads="):
        function(X, X, num_threads=0)


def test_a_gradient_fits_its_linear_layer():
    with pytest.raises(ValueError, match=r"grad_y has shape \(2, 3\); it needs .* \(2, 4\)"):
        functional.linear_backward(X, X, W)
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\); its last dimension must be d_in=3"):
        functional.linear_backward(X, W, W)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); it needs \(d_in, d_out\)"):
        functional.linear_backward(X, X, W[:, 0])


def test_norms_of_gradients_need_an_axis_and_an_eps():
    for function in (functional.layer_norm_backward, functional.rms_norm_backward, functional.column_sums):
        scalars = [np.array(1.0)] * (1 if function is functional.column_sums else 2)
        with pytest.raises(ValueError, match=r"x has shape \(\)"):
            function(*scalars)
    with pytest.raises(ValueError, match="eps=-1"):
        functional.layer_norm_backward(X, X, eps=-1)
    with pytest.raises(ValueError, match=r"weight has shape \(2,\); it needs \(3,\)"):
        functional.rms_norm_backward(X, X, X[:, 0])


def test_a_gate_and_what_it_opens_are_alike():
    with pytest.raises(ValueError, match=r"up has shape \(3, 4\), gate \(2, 3\)"):
        functional.gate_backward(X, X, W, "silu")
    with pytest.raises(TypeError, match="up has dtype float16, gate float32"):
        functional.gate_backward(X, X, X.astype(np.float16), "silu")
    with pytest.raises(ValueError, match='activation=None must be "gelu"'):
        functional.gate_backward(X, X, X, None)
