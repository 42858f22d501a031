# SPDX-License-Identifier: Apache-2.0
"""selfattn.attention against PyTorch's flex_attention in float64: soft caps, ALiBi, windows, and the lse."""

import warnings

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_as_exact_as_numpy
from support.arrays import qkv
from support.strategies import using

import selfattn
from selfattn import reference

torch = pytest.importorskip("torch")
flex = pytest.importorskip("torch.nn.attention.flex_attention")

LENGTHS = [(1, 1), (1, 290), (21, 50), (50, 21), (130, 130)]
OPTIONS = {
    "no option": {},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": selfattn.alibi_slopes(6)},
    "window": {"window": (9, 4)},
    "open to the left": {"window": (None, 3)},
    "open to the right": {"window": (5, None), "causal": "top_left"},
    "together": {
        "softcap": 2.0,
        "alibi_slopes": -selfattn.alibi_slopes(6),
        "window": (30, 0),
        "causal": "bottom_right",
        "scale": 0.5,
    },
}


def flex_attention(
    query, key, value, *, softcap=None, alibi_slopes=None, window=None, causal=False, scale=None
):
    """The same call, as a function of the scores and one of the positions; out and lse in float64."""
    q_len, kv_len = query.shape[2], key.shape[2]
    offset = 0 if causal == "top_left" else kv_len - q_len
    left, right = (q_len + kv_len if side is None else side for side in window or (None, None))
    right = min(right, 0) if causal else right
    slopes = torch.zeros(6).double() if alibi_slopes is None else torch.from_numpy(alibi_slopes)

    def score_mod(score, batch, head, i, j):
        score = score if softcap is None else softcap * torch.tanh(score / softcap)
        return score - slopes[head] * (i + offset - j).abs()

    def mask_mod(batch, head, i, j):
        return (j >= i + offset - left) & (j <= i + offset + right)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather be compiled
        out, more = flex.flex_attention(
            *(torch.from_numpy(np.asarray(array, np.float64)) for array in (query, key, value)),
            score_mod=score_mod,
            block_mask=flex.create_block_mask(mask_mod, None, None, q_len, kv_len, device="cpu"),
            scale=scale,
            enable_gqa=True,
            return_aux=flex.AuxRequest(lse=True),
        )
    return out.numpy(), more.lse.numpy()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_options(rng, q_len, kv_len, name):
    sizes = {"q_len": q_len, "kv_len": kv_len, "dim": 24, "value_dim": 40}
    drawn = qkv(rng, batch=max(2, 24 // q_len), heads=6, kv_heads=2, **sizes)
    for dtype in DTYPES:
        arrays = [array.astype(dtype) for array in drawn]
        exact = flex_attention(*arrays, **OPTIONS[name])
        naive = reference.attention(*arrays, **OPTIONS[name], return_lse=True)
        for isa in selfattn.available_isas():
            with using(isa):
                ours = selfattn.attention(*arrays, **OPTIONS[name], return_lse=True)
            check(ours, naive, exact)


def check(ours, naive, exact):
    for mine, same, truth in zip(ours, naive, exact, strict=True):
        if mine.dtype == np.float64:  # the truth itself is rounded
            np.testing.assert_allclose(mine, truth, rtol=0, atol=1e-13)
        else:
            assert_as_exact_as_numpy(mine, same.astype(mine.dtype), truth)
