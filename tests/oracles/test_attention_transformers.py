# SPDX-License-Identifier: Apache-2.0
"""Sinks, against gpt-oss as transformers writes it: one more column of scores, dropped after the softmax."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_as_exact_as_numpy
from support.arrays import qkv

import selfattn
from selfattn import reference

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward  # noqa: E402

pytestmark = pytest.mark.usefixtures("isa")
SINKS = {
    "weak": [-3.0, -2.0, -1.0, -5.0, -8.0, -20.0],
    "mixed": [0.0, 1.5, -1.0, 4.0, 12.0, -40.0],
    "strong": [30.0, 80.0, 8.0, 6.0, 20.0, 10.0],
}


def gpt_oss(query, key, value, sinks, added):
    """Output (batch, heads, q_len, value_dim) and weights in float64; `added` to the scaled scores."""
    module = SimpleNamespace(
        num_key_value_groups=query.shape[1] // key.shape[1],
        sinks=torch.tensor(sinks, dtype=torch.float64),
        training=False,
    )
    tensors = (torch.from_numpy(np.asarray(array, np.float64)) for array in (query, key, value))
    scaling = query.shape[-1] ** -0.5
    out, weights = eager_attention_forward(module, *tensors, torch.from_numpy(added), scaling)
    return out.transpose(1, 2).numpy(), weights.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sinks", SINKS.values(), ids=SINKS)
@pytest.mark.parametrize(
    ("q_len", "kv_len", "window"), [(1, 1, 0), (1, 300, 127), (40, 40, 15), (21, 170, 500)]
)
def test_sinks(rng, q_len, kv_len, window, sinks, dtype):
    """As gpt-oss has them: causal, grouped heads, and a window in every other layer."""
    sizes = {"q_len": q_len, "kv_len": kv_len, "dim": 24, "value_dim": 40}
    arrays = qkv(rng, batch=max(2, 24 // q_len), heads=6, kv_heads=2, **sizes)
    arrays = [array.astype(dtype) for array in arrays]
    distance = np.arange(kv_len) - (np.arange(q_len)[:, None] + kv_len - q_len)
    added = np.where((distance <= 0) & (distance >= -window), 0, -np.inf)
    exact_out, exact_weights = gpt_oss(*arrays, sinks, added)
    options = {"causal": "bottom_right", "window": (window, 0), "sinks": sinks}
    check(selfattn.attention(*arrays, **options), reference.attention(*arrays, **options), exact_out)
    weights = selfattn.attention_weights(*arrays[:2], **options)
    check(weights, reference.attention_weights(*arrays[:2], **options), exact_weights)


def check(ours, naive, exact):
    if ours.dtype == np.float64:  # the truth itself is rounded
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-13)
    else:
        assert_as_exact_as_numpy(ours, naive.astype(ours.dtype), exact)
