# SPDX-License-Identifier: Apache-2.0
"""The gradients of the specification are those of what it computes: float64 central differences."""

import numpy as np
import pytest
from support.attention_gradients import EVERY, OPTIONS, assert_is_gradient, needed, options_of
from support.spec_arrays import arrays
from support.spec_arrays import qkv as larger_qkv

from selfattn import reference

SLOPES = {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0])}
SINKS = {"sinks": np.array([0.0, 1.0, -3.0, 5.0])}


def qkv(**sizes):
    return larger_qkv(**({"batch": 2, "head_dim": 3, "value_dim": 2} | sizes))


def check(query, key, value, **options):
    """Every gradient there is, of a loss that weighs each number of the output differently."""
    out, lse = reference.attention(query, key, value, **options, return_lse=True)
    grad_out = np.random.default_rng(3).standard_normal(out.shape)
    names = needed(options)
    arguments = {"query": query, "key": key, "value": value} | {name: options[name] for name in names[3:]}
    fixed = {name: option for name, option in options.items() if name not in arguments}

    def loss(query, key, value, **varied):
        return float((grad_out * reference.attention(query, key, value, **varied, **fixed)).sum())

    grads = reference.attention_backward(grad_out, query, key, value, out, lse, need=names, **options)
    assert_is_gradient(loss, arguments, grads)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option(rng, name):
    grads = check(*qkv(), **options_of(rng)[name])
    assert all(grad.any() for grad in grads.values())


@pytest.mark.parametrize("causal", ["top_left", "bottom_right"])
@pytest.mark.parametrize("name", ["window", "kv_lengths", "alibi", "all together"])
def test_positions(rng, name, causal):
    check(*qkv(), **(options_of(rng)[name] | SLOPES | {"causal": causal}))


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (5, 1), (4, 1, 1), (2, 1, 1, 7), (1, 4, 5, 1), (2, 4, 5, 7)]
)
def test_a_bias_is_summed_over_what_it_is_broadcast_over(rng, shape):
    check(*qkv(), bias=rng.standard_normal(shape), softcap=2.0, **SINKS)


@pytest.mark.parametrize(
    "shapes", [((3,), (1,), ()), ((), (3,), (1,)), ((2, 1), (1, 3), (3,)), ((), (), (2,))]
)
def test_leading_dimensions_are_summed_over_what_they_are_broadcast_over(shapes):
    tails = (2, 3, 4), (1, 5, 4), (1, 5, 2)
    check(*arrays(*(leading + tail for leading, tail in zip(shapes, tails, strict=True))))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_that_share_a_key_head(kv_heads):
    check(*qkv(kv_heads=kv_heads, q_len=3, kv_len=4), **SLOPES, **SINKS)


def test_a_row_without_keys_has_no_gradient_and_gives_none(rng):
    mask = np.ones((5, 7), bool)
    mask[2] = False
    grads = check(*qkv(), mask=mask, bias=rng.standard_normal((5, 1)), **SINKS)
    assert not grads["query"][:, :, 2].any()
    assert grads["bias"][2] == 0
    nothing = check(*qkv(), mask=np.zeros((5, 7), bool), **SINKS)
    assert not any(grad.any() for grad in nothing.values())


def test_the_order_is_that_of_need():
    query, key, value = qkv()
    out, lse = reference.attention(query, key, value, **SINKS, return_lse=True)
    call = (np.ones_like(out), query, key, value, out, lse)
    names = ("sinks", "value", "query")
    grads = reference.attention_backward(*call, need=names, **SINKS)
    assert [grad.shape for grad in grads] == [(4,), value.shape, query.shape]
    assert [g.shape for g in reference.attention_backward(*call, **SINKS)] == [x.shape for x in call[1:4]]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nothing_behind_a_mask_reaches_a_gradient(rng, poison):
    query, key, value = qkv()
    mask = np.broadcast_to(np.arange(7) < 5, (5, 7)).copy()
    mask[3] = False  # a row that sees no key
    options = {"mask": mask, "softcap": 2.0, "bias": rng.standard_normal((5, 7)), **SINKS, **SLOPES}
    grad_out = rng.standard_normal((2, 4, 5, 2))

    def gradients():
        out, lse = reference.attention(query, key, value, **options, return_lse=True)
        return reference.attention_backward(grad_out, query, key, value, out, lse, need=EVERY, **options)

    clean = gradients()
    query[:, :, 3] = key[:, :, 5:] = value[:, :, 5:] = grad_out[:, :, 3] = poison
    options["bias"][:, 5:] = options["bias"][3] = poison
    for grad, expected in zip(gradients(), clean, strict=True):
        np.testing.assert_array_equal(grad, expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_sequences_are_differentiated_one_by_one(rng, name):
    cu_q, cu_kv = [0, 3, 3, 7, 8], [0, 4, 6, 6, 11]
    query, key, value = arrays((8, 4, 3), (11, 2, 3), (11, 2, 2))
    options = options_of(rng)[name]
    for mask in {"mask", "bias"} & {*options}:
        options[mask] = rng.standard_normal((4, 8, 5)) if mask == "bias" else rng.random((4, 8, 5)) < 0.8
    if "kv_lengths" in options:
        options["kv_lengths"] = [3, 2, 0, 4]
    names = [name for name in needed(options) if name != "bias"]
    out, lse = reference.varlen_attention(query, key, value, cu_q, cu_kv, **options, return_lse=True)
    grad_out = rng.standard_normal(out.shape)
    grads = reference.varlen_attention_backward(
        grad_out, query, key, value, out, lse, cu_q, cu_kv, need=names, **options
    )
    arguments = {"query": query, "key": key, "value": value} | {name: options.pop(name) for name in names[3:]}

    def loss(query, key, value, **varied):
        out = reference.varlen_attention(query, key, value, cu_q, cu_kv, **varied, **options)
        return float((grad_out * out).sum())

    assert_is_gradient(loss, arguments, grads)
