"""The compiled gradients of the layers; selfattn.functional is their public face."""

from typing import Any, overload

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

@overload
def activation_backward(grad_y: Array, x: Array, up: None, activation: str, num_threads: int) -> Array: ...
@overload
def activation_backward(
    grad_y: Array, x: Array, up: Array, activation: str, num_threads: int
) -> tuple[Array, Array]: ...
def norm_backward(
    grad_y: Array, x: Array, weight: Array, eps: float, rms: bool, num_threads: int
) -> tuple[Array, Array, Array]: ...
def weight_gradient(x: Array, grad_y: Array, num_threads: int) -> Array: ...
def sum_rows(x: Array, num_threads: int) -> Array: ...
