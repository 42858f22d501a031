# SPDX-License-Identifier: Apache-2.0
"""Float64 queries, keys and values for the tests of the specification."""

import numpy as np


def arrays(*shapes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def qkv(heads=4, kv_heads=2, q_len=5, kv_len=7, head_dim=8, value_dim=3, batch=2, dtype=np.float64):
    return arrays(
        (batch, heads, q_len, head_dim),
        (batch, kv_heads, kv_len, head_dim),
        (batch, kv_heads, kv_len, value_dim),
        dtype=dtype,
    )
