# SPDX-License-Identifier: Apache-2.0
"""The gradients of what comes before the layers: rows looked up in a table, positions turned into queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integers
from selfattn.layers.base import Array
from selfattn.layers.positions import rotary_embedding

if TYPE_CHECKING:
    import numpy.typing as npt


def embedding_backward(grad_y: npt.ArrayLike, ids: npt.ArrayLike, num_rows: int) -> Array:
    """The gradient of the table in y = table[ids]: row n is the sum of grad_y over the places where ids is n.

    grad_y (..., width) floats, ids (...) integers, table (num_rows, width): tokens and positions alike. Each
    sum is in float64, in an order that its places alone decide, and rounded once to grad_y's dtype. TypeError
    for ids that are not integers; ValueError for shapes that do not fit and for an id outside of the table.
    """
    grad_y, ids = np.asarray(grad_y), as_integers("ids", ids)
    if grad_y.dtype.kind in "biu":
        raise TypeError(f"grad_y has dtype {grad_y.dtype}; it must be floating")
    if grad_y.shape[:-1] != ids.shape or not grad_y.ndim:
        raise ValueError(
            f"grad_y has shape {grad_y.shape}; with ids of shape {ids.shape} it needs (*ids, width)"
        )
    flat = ids.reshape(-1)
    bad = flat[(flat < 0) | (flat >= num_rows)]
    if bad.size:
        raise ValueError(f"ids holds {bad[0]}; the table has the rows 0 to {num_rows - 1}")
    order = np.argsort(flat, kind="stable")  # places of the same id side by side, in their order
    used, first = np.unique(flat[order], return_index=True)
    rows = grad_y.reshape(flat.size, grad_y.shape[-1])[order].astype(np.float64)
    table = np.zeros((num_rows, grad_y.shape[-1]), grad_y.dtype)
    table[used] = np.add.reduceat(rows, first, axis=0)
    return table


def rotary_embedding_backward(grad_y: npt.ArrayLike, positions: npt.ArrayLike, **how: Any) -> Array:
    """The gradient of x in y = rotary_embedding(x, positions, ...): grad_y turned back by the same angles.

    Everything is as in `rotary_embedding`, whose options these are.
    """
    return rotary_embedding(grad_y, -np.asarray(positions, dtype=np.float64), **how)
