"""selfattn.attention against PyTorch's scaled_dot_product_attention in float64, at breadth."""

import itertools
import warnings

import numpy as np
import pytest
from accuracy import assert_as_exact_as_numpy
from arrays import LAYOUTS, qkv

import selfattn
from selfattn import reference

torch = pytest.importorskip("torch")
sdpa = torch.nn.functional.scaled_dot_product_attention
MATH = torch.nn.attention.SDPBackend.MATH

pytestmark = pytest.mark.usefixtures("isa")
LENGTHS = [(1, 1), (1, 77), (7, 7), (16, 33), (65, 64), (130, 300)]


def check_against_torch(query, key, value, *, mask=None, bias=None, causal=False, scale=None):
    """At most twice the error of NumPy in float32, where PyTorch in float64 is the truth."""
    options = {"mask": mask, "bias": bias, "causal": causal, "scale": scale}
    added = None if bias is None else torch.from_numpy(np.asarray(bias, np.float64))
    allowed = torch.from_numpy(mask) if mask is not None else None
    if added is not None and allowed is not None:
        added = added.masked_fill(~allowed, -torch.inf)
    with torch.nn.attention.sdpa_kernel(MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = sdpa(
            *(torch.from_numpy(np.ascontiguousarray(a, np.float64)) for a in (query, key, value)),
            attn_mask=allowed if added is None else added,
            is_causal=causal == "top_left",
            scale=scale,
            enable_gqa=query.shape[-3] != key.shape[-3],
        )
    naive = reference.attention(query, key, value, **options)
    assert_as_exact_as_numpy(selfattn.attention(query, key, value, **options), naive, exact.numpy())


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


@pytest.mark.parametrize("size", [1, 4, 16])
def test_error_is_no_larger_than_pytorchs(rng, size):
    """The error over one larger problem, with logits up to about 84, beside PyTorch's own in float32."""
    query, key, value = qkv(rng, heads=8, q_len=256, dim=64)
    query *= np.float32(size)
    tensors = [torch.from_numpy(array) for array in (query, key, value)]
    with torch.nn.attention.sdpa_kernel(MATH):
        exact = sdpa(*(tensor.double() for tensor in tensors)).numpy()
    theirs = np.abs(sdpa(*tensors).numpy() - exact)
    ours = np.abs(selfattn.attention(query, key, value) - exact)
    assert np.sqrt((ours**2).mean()) <= 1.25 * np.sqrt((theirs**2).mean())
