# SPDX-License-Identifier: Apache-2.0
"""What attention_backward refuses, by name and with both numbers; and what it takes beside NumPy's arrays."""

import numpy as np
import pytest
from support.accuracy import assert_same_bits
from support.arrays import qkv
from support.attention_gradients import EVERY, QKV, grad_like_out, options_of

import selfattn
from selfattn import reference

PACKED = (np.array([0, 2, 5]), np.array([0, 3, 7]))


@pytest.fixture
def call(rng):
    """grad_out, query, key, value, out, lse, by name."""
    arrays = qkv(rng, heads=4, kv_heads=2, q_len=5, kv_len=7, value_dim=3)
    out, lse = selfattn.attention(*arrays, return_lse=True)
    named = dict(zip(QKV, arrays, strict=True)) | {"out": out, "lse": lse}
    return {"grad_out": grad_like_out(rng, *arrays)} | named


def packed_call(call):
    """The first item of each as two sequences."""
    heads_first = {name: array[0] for name, array in call.items()}
    arrays = {name: x if name == "lse" else x.swapaxes(0, 1) for name, x in heads_first.items()}
    out, lse = selfattn.varlen_attention(*(arrays[name] for name in QKV), *PACKED, return_lse=True)
    return arrays | {"out": out, "lse": lse, "cu_seqlens_q": PACKED[0], "cu_seqlens_kv": PACKED[1]}


@pytest.mark.parametrize("name", ["grad_out", "query", "key", "value", "out"])
def test_a_dtype_that_differs(call, name):
    call[name] = call[name].astype(np.float64)
    with pytest.raises(TypeError, match=r"query has dtype float\d\d and \w+ has dtype float\d\d"):
        selfattn.attention_backward(**call)


@pytest.mark.parametrize("name", ["grad_out", "query", "key", "value", "out", "lse"])
@pytest.mark.parametrize("wrong", [None, [1.0], 3, np.ma.masked_array(np.zeros(3, np.float32))])
def test_no_array(call, name, wrong):
    with pytest.raises(TypeError, match=f"{name} is "):
        selfattn.attention_backward(**(call | {name: wrong}))
    with pytest.raises(TypeError, match=f"{name} is "):
        selfattn.varlen_attention_backward(**(packed_call(call) | {name: wrong}))


@pytest.mark.parametrize("name", ["grad_out", "out"])
def test_a_gradient_or_output_of_another_shape(call, name):
    for shape in [(2, 4, 5, 4), (2, 4, 6, 3), (4, 5, 3), (1, 4, 5, 3)]:
        message = rf"{name} has shape \({str(shape)[1:-1]}\); .* gives \(2, 4, 5, 3\)"
        with pytest.raises(ValueError, match=message):
            selfattn.attention_backward(**(call | {name: np.zeros(shape, np.float32)}))
    wrong = packed_call(call) | {name: np.zeros((5, 3, 4), np.float32)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(5, 3, 4\); .* gives \(5, 4, 3\)"):
        selfattn.varlen_attention_backward(**wrong)


def test_an_lse_of_another_shape_or_dtype(call):
    with pytest.raises(ValueError, match=r"lse has shape \(2, 4, 5, 1\); .* gives \(2, 4, 5\)"):
        selfattn.attention_backward(**(call | {"lse": call["lse"][..., None]}))
    with pytest.raises(TypeError, match=r"lse has dtype float64; attention of float32 arrays gives float32"):
        selfattn.attention_backward(**(call | {"lse": call["lse"].astype(np.float64)}))
    wide = {name: array.astype(np.float64) for name, array in call.items()}
    with pytest.raises(TypeError, match=r"lse has dtype float32; attention of float64 arrays gives float64"):
        selfattn.attention_backward(**(wide | {"lse": call["lse"]}))
    half = {name: array.astype(np.float16) for name, array in call.items()}
    with pytest.raises(TypeError, match=r"lse has dtype float16; attention of float16 arrays gives float32"):
        selfattn.attention_backward(**half)
    packed = packed_call(call)
    with pytest.raises(ValueError, match=r"lse has shape \(5, 4\); .* gives \(4, 5\)"):
        selfattn.varlen_attention_backward(**(packed | {"lse": packed["lse"].T}))


def test_need(call):
    with pytest.raises(TypeError, match=r"need='query' must be a tuple of names: need=\('query',\)"):
        selfattn.attention_backward(**call, need="query")
    with pytest.raises(TypeError, match=r"need=\{'key'\} is a set; the gradients come in the order of need"):
        selfattn.attention_backward(**call, need={"key"})
    with pytest.raises(
        ValueError, match=r"need has 'out'; it takes query, key, value, bias, sinks, alibi_slo"
    ):
        selfattn.attention_backward(**call, need=("query", "out"))
    for name in EVERY[3:]:
        with pytest.raises(ValueError, match=f"need has '{name}', and no {name} was given: pass {name}="):
            selfattn.attention_backward(**call, need=(name,))
    bias = np.zeros((1, 1, 4), np.float32)
    with pytest.raises(ValueError, match="need has 'bias'; it takes query, key, value, sinks, alibi_slopes"):
        selfattn.varlen_attention_backward(**packed_call(call), bias=bias, need=("bias",))
    assert selfattn.attention_backward(**call, need=()) == ()


def test_options_are_checked_as_those_of_attention(call):
    wrong = {"scale": np.inf, "softcap": 0.0, "window": (-1, 0), "kv_lengths": [3, 8], "causal": True}
    for name, option in wrong.items():
        with pytest.raises(ValueError, match=name) as of_attention:
            selfattn.attention(*(call[name] for name in QKV), **{name: option})
        with pytest.raises(ValueError, match=name) as of_backward:
            selfattn.attention_backward(**call, **{name: option})
        assert str(of_attention.value) == str(of_backward.value)
    with pytest.raises(TypeError, match="mask has dtype float32"):
        selfattn.attention_backward(**call, mask=np.zeros((5, 7), np.float32))
    with pytest.raises(ValueError, match=r"causal=True with q_len=2 and kv_len=3 in sequence 0"):
        selfattn.varlen_attention_backward(**packed_call(call), causal=True)
    with pytest.raises(ValueError, match="cu_seqlens_q begins at 0 and ends at 4"):
        selfattn.varlen_attention_backward(**(packed_call(call) | {"cu_seqlens_q": [0, 2, 4]}))


def test_the_inputs_stay_as_they_were(call, rng):
    options = options_of(rng, dtype=np.float32)["all together"]
    given = call | {name: x for name, x in options.items() if isinstance(x, np.ndarray)}
    before = {name: array.copy() for name, array in given.items()}
    for array in given.values():
        array.flags.writeable = False
    selfattn.attention_backward(**call, **options, need=EVERY)
    for name, array in given.items():
        assert_same_bits(array, before[name])


def test_the_precision_of_the_forward_computation_is_taken_and_changes_nothing(call):
    expected = selfattn.attention_backward(**call)
    for grad, same in zip(selfattn.attention_backward(**call, precision="bfloat16"), expected, strict=True):
        assert_same_bits(grad, same)
    with pytest.raises(ValueError, match="precision='float8'"):
        selfattn.attention_backward(**call, precision="float8")


def test_every_gradient_is_new_memory(call):
    """In place updates of one must not show in another, nor in what was passed."""
    grads = selfattn.attention_backward(**call, need=("value", "key", "query"))
    for grad in grads:
        assert grad.flags.writeable
        assert not any(np.shares_memory(grad, array) for array in call.values())


def test_numbers_of_a_head_of_packed_sequences(call):
    options = {"sinks": np.arange(4.0), "alibi_slopes": np.linspace(0, 1, 4), "kv_lengths": [2, 4]}
    packed, need = packed_call(call), ("alibi_slopes", "sinks")
    names = ("query", "key", "value", "cu_seqlens_q", "cu_seqlens_kv")
    out, lse = selfattn.varlen_attention(*(packed[n] for n in names), **options, return_lse=True)
    packed |= {"out": out, "lse": lse}
    grads = selfattn.varlen_attention_backward(**packed, **options, need=need)
    expected = reference.varlen_attention_backward(**packed, **options, need=need)
    for grad, same in zip(grads, expected, strict=True):
        assert grad.dtype == np.float32
        np.testing.assert_allclose(grad, same, rtol=1e-4, atol=1e-5)
