# SPDX-License-Identifier: Apache-2.0
"""The four similarities of sentence-transformers, as an (n, m) table and for pairs. Larger is more alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfattn._native import pointwise as _pointwise
from selfattn.runtime import resolve_num_threads
from selfattn.text.pooling import normalize

FUNCTIONS = ("cosine", "dot", "euclidean", "manhattan")
MAX_BLOCK = 1 << 22  # differences held at once by the two distances
COLUMNS = 4096  # of a table of products computed at a time: Ctrl-C waits for no more


def check_similarity(name: Any, where: str) -> str:
    """`name` if it is one of FUNCTIONS, else ValueError."""
    if name not in FUNCTIONS:
        raise ValueError(f"{where}: similarity_fn_name={name!r} is not one of {', '.join(FUNCTIONS)}")
    return str(name)


def similarity(a: ArrayLike, b: ArrayLike, name: str) -> NDArray[np.float32]:
    """(n, dim) and (m, dim), or (dim,) for one -> (n, m) float32. Distances are negated."""
    left, right = _rows(a, "a"), _rows(b, "b")
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"a has dimension {left.shape[1]}, b has {right.shape[1]}: they must agree")
    if name == "cosine":
        left, right = normalize(left), normalize(right)
    if name in ("cosine", "dot"):
        return _products(left, right)
    return _negative_distances(left, right, name)


def similarity_pairwise(a: ArrayLike, b: ArrayLike, name: str) -> NDArray[np.float32]:
    """(n, dim) and (n, dim) -> (n,) float32: row i of a with row i of b. (dim,) and (dim,) -> (1,)."""
    left, right = _rows(a, "a"), _rows(b, "b")
    if left.shape != right.shape:
        raise ValueError(f"a has shape {left.shape}, b has {right.shape}: they must agree")
    if name == "cosine":
        left, right = normalize(left), normalize(right)
    if name in ("cosine", "dot"):
        products: NDArray[np.float64] = (left.astype(np.float64) * right).sum(axis=1)
        return products.astype(np.float32)
    return _distances(left.astype(np.float64) - right, name).astype(np.float32)


def _rows(x: ArrayLike, name: str) -> NDArray[np.float32]:
    rows = np.asarray(x)
    if rows.dtype.kind not in "biuf":
        raise TypeError(f"{name} holds {rows.dtype}, expected embeddings: give what encode() returns for it")
    rows = rows.astype(np.float32, copy=False)
    if rows.ndim not in (1, 2):
        raise ValueError(f"{name} has {rows.ndim} dimensions, expected (n, dim) or (dim,)")
    return np.atleast_2d(rows)


def _products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    result = np.empty((len(left), len(right)), dtype=np.float32)
    for i in range(0, len(right), COLUMNS):
        columns = slice(i, i + COLUMNS)
        result[:, columns] = _pointwise.linear(left, right[columns].T, None, None, resolve_num_threads(None))
    return result


def _negative_distances(
    left: NDArray[np.float32], right: NDArray[np.float32], name: str
) -> NDArray[np.float32]:
    result = np.empty((len(left), len(right)), dtype=np.float32)
    step = max(1, MAX_BLOCK // max(1, right.size))
    for i in range(0, len(left), step):
        result[i : i + step] = _distances(left[i : i + step, None].astype(np.float64) - right, name)
    return result


def _distances(difference: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """The negated lengths of the last dimension's vectors."""
    order = 1 if name == "manhattan" else 2
    return -np.asarray(np.linalg.norm(difference, ord=order, axis=-1))
