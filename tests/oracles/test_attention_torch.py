# SPDX-License-Identifier: Apache-2.0
"""selfattn.attention against PyTorch's scaled_dot_product_attention in float64, at breadth."""

import itertools
import warnings

import numpy as np
import pytest
from support.accuracy import DTYPES, assert_as_exact_as_numpy
from support.arrays import LAYOUTS, qkv

import selfattn
from selfattn import reference
from selfattn._native.dlpack import from_dlpack

torch = pytest.importorskip("torch")
sdpa = torch.nn.functional.scaled_dot_product_attention
MATH = torch.nn.attention.SDPBackend.MATH

pytestmark = pytest.mark.usefixtures("isa")
LENGTHS = [(1, 1), (1, 77), (7, 7), (16, 33), (65, 64), (130, 300)]


def math_sdpa(*tensors, **options):
    """PyTorch's formula, spelled out: of its ways to compute attention the one that takes everything."""
    with torch.nn.attention.sdpa_kernel(MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sdpa(*tensors, **options)


def in_float64(array):
    return torch.from_numpy(np.ascontiguousarray(array, np.float64))


def torch_options(q_len, kv_len, *, mask=None, bias=None, causal=False, scale=None):
    """PyTorch's attn_mask is one of mask and bias, and its is_causal is top left, with no other mask."""
    hidden = torch.zeros(q_len, kv_len, dtype=torch.bool)
    if mask is not None:
        hidden = hidden | ~torch.from_numpy(mask)
    if causal == "bottom_right":
        hidden = hidden | torch.ones(q_len, kv_len, dtype=torch.bool).triu(kv_len - q_len + 1)
    if bias is not None:
        return {"attn_mask": in_float64(bias).masked_fill(hidden, -torch.inf), "scale": scale}
    if causal == "top_left":
        return {"is_causal": True, "scale": scale}
    return {"attn_mask": ~hidden if hidden.any() else None, "scale": scale}


def check_against_torch(query, key, value, **options):
    """At most twice the error of NumPy in that dtype, where PyTorch in float64 is the truth."""
    exact = math_sdpa(
        *map(in_float64, (query, key, value)),
        **torch_options(query.shape[-2], key.shape[-2], **options),
        enable_gqa=query.shape[-3] != key.shape[-3],
    ).numpy()
    ours = selfattn.attention(query, key, value, **options)
    if query.dtype == np.float64:  # the truth itself is rounded
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-13)
        return
    naive = reference.attention(query, key, value, **options)
    assert_as_exact_as_numpy(ours, naive.astype(query.dtype), exact)


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (8, 2), (6, 1)])
@pytest.mark.parametrize(("dim", "value_dim"), [(1, 1), (8, 8), (33, 33), (64, 64), (80, 48), (128, 128)])
def test_shapes(rng, q_len, kv_len, heads, kv_heads, dim, value_dim):
    sizes = {"q_len": q_len, "kv_len": kv_len, "dim": dim, "value_dim": value_dim}
    arrays = qkv(rng, batch=max(2, 48 // q_len), heads=heads, kv_heads=kv_heads, **sizes)
    check_against_torch(*arrays)
    check_against_torch(*arrays, causal="top_left")


@pytest.mark.parametrize(
    "shape", [*itertools.product((2, 1), (3, 1), (21, 1), (50, 1)), (21, 50), (1, 50), (21, 1)], ids=str
)
def test_masks(rng, shape):
    arrays = qkv(rng, heads=3, q_len=21, kv_len=50, dim=24)
    mask = rng.random(shape) < 0.6
    bias = rng.standard_normal(shape).astype(np.float32)
    check_against_torch(*arrays, mask=mask)
    check_against_torch(*arrays, bias=bias)
    check_against_torch(*arrays, mask=mask, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize(("dim", "value_dim"), [(8, 8), (33, 20), (80, 128)])
def test_dtypes(rng, q_len, kv_len, dim, value_dim, dtype):
    sizes = {"q_len": q_len, "kv_len": kv_len, "dim": dim, "value_dim": value_dim}
    arrays = qkv(rng, batch=max(2, 48 // q_len), heads=6, kv_heads=2, **sizes)
    arrays = [array.astype(dtype) for array in arrays]
    mask = rng.random((6, 1, kv_len)) < 0.7
    bias = rng.standard_normal((q_len, kv_len)).astype(dtype)
    check_against_torch(*arrays)
    check_against_torch(*arrays, causal="bottom_right", scale=0.3)
    check_against_torch(*arrays, causal="top_left", scale=-0.3)
    check_against_torch(*arrays, mask=mask, causal="bottom_right")
    check_against_torch(*arrays, mask=mask, bias=bias)


def test_a_row_without_keys(rng):
    arrays = qkv(rng, q_len=9, kv_len=20)
    mask = rng.random((9, 20)) < 0.5
    mask[[0, 4]] = False
    check_against_torch(*arrays, mask=mask)
    assert not selfattn.attention(*arrays, mask=mask)[:, :, [0, 4]].any()


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.3, 2.0])
def test_scale(rng, scale):
    check_against_torch(*qkv(rng, q_len=33, kv_len=47, dim=20), scale=scale)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, layout):
    check_against_torch(*(LAYOUTS[layout](array) for array in qkv(rng, q_len=30, kv_len=41, dim=40)))


def tensors_of(rng, dtype):
    """As models have them, (batch, length, heads, dim) seen as (batch, heads, length, dim); and an output."""
    shapes = (2, 45, 6, 40), (2, 70, 2, 40), (2, 70, 2, 24), (2, 45, 6, 24)
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype).transpose(1, 2) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_as_they_lie(rng, dtype):
    query, key, value, out = tensors_of(rng, dtype)
    mask = torch.from_numpy(rng.random((2, 1, 1, 70)) < 0.8)
    bias = torch.from_numpy(rng.standard_normal((6, 45, 70))).to(dtype)
    wide = [tensor.double() for tensor in (query, key, value)]
    exact = math_sdpa(*wide, attn_mask=bias.double().masked_fill(~mask, -torch.inf), enable_gqa=True)
    theirs = math_sdpa(query, key, value, attn_mask=bias.masked_fill(~mask, -torch.inf), enable_gqa=True)
    assert selfattn.attention(query, key, value, mask=mask, bias=bias, out=out) is out
    assert out.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-13)
    else:
        assert_as_exact_as_numpy(from_dlpack(out), from_dlpack(theirs), exact.numpy())
    result = selfattn.attention(query, key, value, mask=mask, bias=bias)
    np.testing.assert_array_equal(result, from_dlpack(out))


# ---- the error beside PyTorch's own in float32 ----


def relative_error(results, truths):
    """Root mean square over all of them, each in units of its own truth's."""
    ratios = [((a - b) ** 2).mean() / (b**2).mean() for a, b in zip(results, truths, strict=True)]
    return np.sqrt(np.mean(ratios))


@pytest.mark.parametrize("causal", [False, "top_left"])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_error_over_all_lengths_is_about_pytorchs(rng, dim, causal):
    """A single draw of few numbers is luck: all lengths together."""
    exact, theirs, ours = [], [], []
    for q_len, kv_len in [*LENGTHS, (33, 1000), (200, 17)]:
        arrays = qkv(rng, batch=max(2, 48 // q_len), heads=4, q_len=q_len, kv_len=kv_len, dim=dim)
        options = {"is_causal": causal == "top_left"}
        exact.append(math_sdpa(*map(in_float64, arrays), **options).numpy())
        theirs.append(math_sdpa(*map(torch.from_numpy, arrays), **options).numpy())
        ours.append(selfattn.attention(*arrays, causal=causal))
    assert relative_error(ours, exact) <= 1.5 * relative_error(theirs, exact)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_error_with_large_logits_is_about_pytorchs(rng, size):
    """One larger problem, with logits up to about 84."""
    query, key, value = qkv(rng, heads=8, q_len=256, dim=64)
    arrays = query * np.float32(size), key, value
    exact = [math_sdpa(*map(in_float64, arrays)).numpy()]
    theirs = [math_sdpa(*map(torch.from_numpy, arrays)).numpy()]
    ours = [selfattn.attention(*arrays)]
    assert relative_error(ours, exact) <= 1.25 * relative_error(theirs, exact)
