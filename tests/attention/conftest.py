# SPDX-License-Identifier: Apache-2.0
"""One good call of the operator, for every test here to spoil."""

import pytest
from support.arrays import qkv

# (batch 2, heads 4 over 2, queries 5, keys 7, head_dim 8)
LENGTHS = {"q_len": 5, "kv_len": 7}


@pytest.fixture
def good(rng):
    return dict(zip(("query", "key", "value"), qkv(rng, heads=4, kv_heads=2, dim=8, **LENGTHS), strict=True))
