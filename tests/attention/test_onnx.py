# SPDX-License-Identifier: Apache-2.0
"""ONNX's conformance cases: an oracle for the semantics of masks, caches and positions that is not ours."""

import importlib.util

import numpy as np
import pytest

import selfattn
from selfattn import functional, reference

if importlib.util.find_spec("onnx") is None:
    pytest.skip("onnx is not installed", allow_module_level=True)

from support.onnx_adapter import Case, attention_call, cases, flex_attention_call, join_heads, split_heads

# what one rounding to the case's dtype allows: ONNX computes its float16 cases in float16 throughout
TOLERANCE = {
    "float64": (1e-12, 1e-13),
    "float32": (1e-5, 1e-6),
    "float16": (2e-3, 2e-3),
    "bfloat16": (2e-2, 2e-2),
}


def by_name(operator: str) -> dict[str, Case]:
    return {case.name.removeprefix("test_"): case for case in cases(operator)}


ATTENTION, FLEX, SOFTMAX, SCATTER = map(by_name, ("Attention", "FlexAttention", "Softmax", "TensorScatter"))
ROTARY, LAYER_NORM, RMS_NORM, GELU = map(
    by_name, ("RotaryEmbedding", "LayerNormalization", "RMSNormalization", "Gelu")
)
CACHED = [name for name, case in ATTENTION.items() if {"past_key", "nonpad_kv_seqlen"} & case.inputs.keys()]
WEIGHTS = [name for name, case in ATTENTION.items() if case.attributes.get("qk_matmul_output_mode") == 3]
NATIVE_FLEX = [name for name, case in FLEX.items() if flex_attention_call(case)]
LINEAR_SCATTER = [name for name, case in SCATTER.items() if case.attributes.get("mode") != b"circular"]


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    rtol, atol = TOLERANCE[expected.dtype.name]
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=rtol, atol=atol
    )


def assert_close_in_its_dtype(actual, expected):
    assert actual.dtype == expected.dtype
    assert_close(actual, expected)


def test_no_case_is_left_out():
    """But FlexAttention's case that changes the weights after the softmax, and TensorScatter's that writes
    in a circle: a KVCache that is full says so."""
    operators = (ATTENTION, FLEX, SOFTMAX, SCATTER, ROTARY, LAYER_NORM, RMS_NORM, GELU)
    changed = "onnx changed its cases: read what is new, then count again"
    assert [len(group) for group in operators] == [93, 11, 7, 3, 8, 19, 19, 4], changed
    assert [len(group) for group in (CACHED, WEIGHTS, NATIVE_FLEX, LINEAR_SCATTER)] == [34, 6, 10, 2], changed


def test_positions_are_said_by_our_own_options():
    """But where the keys after ONNX's past are not as many as the queries: there a mask says them."""
    said_by_a_mask = [
        name
        for name, case in ATTENTION.items()
        if "mask" in attention_call(case).options
        and case.inputs.get("attn_mask", np.zeros(0)).dtype != np.bool_
    ]
    assert said_by_a_mask == [
        "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
        "attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
        "attention_local_window_with_past",
    ]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_the_reference(name):
    case = ATTENTION[name]
    call = attention_call(case)
    out = reference.attention(call.query, call.key, call.value, **call.options)
    assert_close(join_heads(out, case), case.outputs["Y"])
    if "qk_matmul_output" in case.outputs:
        assert_close(scores_at_stage(call, case), case.outputs["qk_matmul_output"])


def scores_at_stage(call, case):
    """ONNX may ask for the scores after a stage: 0 the product, 1 softcap, 2 masks, 3 softmax."""
    stage = case.attributes.get("qk_matmul_output_mode", 0)
    if stage == 3:
        return reference.attention_weights(call.query, call.key, **call.options)
    until = {0: {"scale"}, 1: {"scale", "softcap"}, 2: call.options.keys()}[stage]
    options = {option: call.options[option] for option in call.options.keys() & until}
    return reference.masked_scores(call.query, call.key, **options)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(isa, name):
    case = ATTENTION[name]
    call = attention_call(case)
    out = selfattn.attention(call.query, call.key, call.value, **call.options)
    assert_close_in_its_dtype(join_heads(out, case), case.outputs["Y"])


@pytest.mark.parametrize("name", WEIGHTS)
def test_attention_weights(isa, name):
    case = ATTENTION[name]
    call = attention_call(case)
    weights = selfattn.attention_weights(call.query, call.key, **call.options)
    assert_close_in_its_dtype(weights, case.outputs["qk_matmul_output"])


@pytest.mark.parametrize("name", CACHED)
def test_attention_over_a_cache(isa, name):
    """ONNX's past and present are what a KVCache holds before and after; nonpad_kv_seqlen, its lengths."""
    case = ATTENTION[name]
    _, key, value = split_heads(case)
    (batch, heads, new, head_dim), value_dim = key.shape, value.shape[-1]
    past = [case.inputs[name] for name in ("past_key", "past_value") if name in case.inputs]
    capacity = new + (past[0].shape[2] if past else 0)
    cache = selfattn.KVCache(batch, heads, head_dim, value_dim=value_dim, capacity=capacity, dtype=key.dtype)
    if past:
        cache.append(*past)
    cache.append(key, value, case.inputs.get("nonpad_kv_seqlen"))
    if "present_key" in case.outputs:
        np.testing.assert_array_equal(cache.key, case.outputs["present_key"])
        np.testing.assert_array_equal(cache.value, case.outputs["present_value"])
    call = attention_call(case)
    options = {"causal": False} | call.options
    options.pop("kv_lengths", None)
    for option in options.keys() & {"mask", "bias"}:
        options[option] = options[option][..., : max(cache.lengths)]
    out = cache.attention(call.query, **options)
    assert_close_in_its_dtype(join_heads(out, case), case.outputs["Y"])


@pytest.mark.parametrize("name", LINEAR_SCATTER)
def test_a_cache_grows_like_tensor_scatter(name):
    """Where ONNX writes the update into each item's past, KVCache.append puts the new tokens."""
    case = SCATTER[name]
    past, update, present = (  # (batch, heads, length, dim)
        array if array.ndim == 4 else array[:, None]
        for array in (case.inputs["past_cache"], case.inputs["update"], case.outputs["present_cache"])
    )
    (batch, heads, capacity, dim), begin = past.shape, case.inputs["write_indices"]
    cache = selfattn.KVCache(batch, heads, dim, capacity=capacity)
    cache.append(past, -past, begin)
    cache.append(update, -update)
    for b, end in enumerate(begin + update.shape[2]):
        assert cache.lengths[b] == end
        np.testing.assert_array_equal(cache.key[b, :, :end], present[b, :, :end])
        np.testing.assert_array_equal(cache.value[b, :, :end], -present[b, :, :end])


def test_a_full_cache_does_not_write_in_a_circle():
    case = SCATTER["tensorscatter_circular"]
    past, update = case.inputs["past_cache"], case.inputs["update"]
    cache = selfattn.KVCache(*past.shape[:2], past.shape[3], capacity=past.shape[2])
    cache.append(past, past, case.inputs["write_indices"])
    with pytest.raises(ValueError, match="capacity=4"):
        cache.append(update, update)


@pytest.mark.parametrize("name", NATIVE_FLEX)
def test_flex_attention(isa, name):
    case = FLEX[name]
    call = flex_attention_call(case)
    out = selfattn.attention(call.query, call.key, call.value, **call.options)
    assert_close_in_its_dtype(out, case.outputs["Y"])


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(isa, name):
    """The weights of a query of zeros are the softmax of the bias."""
    axis = SOFTMAX[name].attributes.get("axis", -1)
    logits, expected = (
        np.moveaxis(array, axis, -1).reshape(1, -1, array.shape[axis])  # (1 head, rows, n)
        for array in (SOFTMAX[name].inputs["input"], SOFTMAX[name].outputs["output"])
    )
    query, key = (np.zeros((1, length, 1), np.float32) for length in logits.shape[1:])
    assert_close_in_its_dtype(selfattn.attention_weights(query, key, bias=logits), expected)


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_embedding(name):
    """ONNX's cosines and sines are any numbers; ours come of a position. For each pair of channels alone, one
    position (times one length) gives ONNX's pair, and that pair's channels of the result must be ONNX's."""
    case = ROTARY[name]
    x, expected = case.inputs["X"].astype(np.float64), case.outputs["Y"]
    if x.ndim == 3:
        heads = case.attributes["num_heads"]
        x, expected = (a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in (x, expected))
    cosine, sine = case.inputs["cos_cache"], case.inputs["sin_cache"]
    if "position_ids" in case.inputs:
        cosine, sine = cosine[case.inputs["position_ids"]], sine[case.inputs["position_ids"]]
    rotary_dim = case.attributes.get("rotary_embedding_dim") or x.shape[-1]
    interleaved = bool(case.attributes.get("interleaved", 0))
    turned = x.copy()
    for pair in range(rotary_dim // 2):
        angle = np.arctan2(sine[..., pair].astype(float), cosine[..., pair])  # (batch, seq_len)
        length = np.hypot(sine[..., pair], cosine[..., pair])[:, None, :, None]
        channels = [2 * pair, 2 * pair + 1] if interleaved else [pair, pair + rotary_dim // 2]
        positions = angle * 10000.0 ** (2 * pair / rotary_dim)
        out = selfattn.rotary_embedding(x, positions, rotary_dim=rotary_dim, interleaved=interleaved)
        turned[..., channels] = out[..., channels] * length
        np.testing.assert_array_equal(out[..., rotary_dim:], x[..., rotary_dim:])
    assert_close(turned, expected)


def normalized_axes(case, weight_name):
    """x, weight and eps. ONNX normalises over axis and all after it, which here become one last axis."""
    x, weight = case.inputs["X"], case.inputs[weight_name]
    axis = case.attributes.get("axis", -1) % x.ndim
    return x.reshape(*x.shape[:axis], -1), weight.reshape(-1), case.attributes.get("epsilon", 1e-5)


@pytest.mark.parametrize("name", LAYER_NORM)
def test_layer_norm(isa, name):
    case = LAYER_NORM[name]
    x, weight, eps = normalized_axes(case, "Scale")
    bias, expected = case.inputs["B"].reshape(-1), case.outputs["Y"].reshape(x.shape)
    assert_close(reference.layer_norm(x, weight, bias, eps=eps), expected)
    assert_close_in_its_dtype(functional.layer_norm(x, weight, bias, eps=eps), expected)


@pytest.mark.parametrize("name", RMS_NORM)
def test_rms_norm(isa, name):
    case = RMS_NORM[name]
    x, weight, eps = normalized_axes(case, "scale")
    expected = case.outputs["Y"].reshape(x.shape)
    assert_close(reference.rms_norm(x, weight, eps=eps), expected)
    assert_close_in_its_dtype(functional.rms_norm(x, weight, eps=eps), expected)


@pytest.mark.parametrize("name", GELU)
def test_gelu(isa, name):
    case = GELU[name]
    function = "gelu_tanh" if case.attributes.get("approximate") == b"tanh" else "gelu"
    assert_close(getattr(reference, function)(case.inputs["X"]), case.outputs["Y"])
    assert_close_in_its_dtype(getattr(functional, function)(case.inputs["X"]), case.outputs["Y"])
