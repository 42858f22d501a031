"""ONNX's conformance cases: an oracle for the semantics of masks, caches and positions that is not ours."""

import importlib.util

import numpy as np
import pytest

import selfattn
from selfattn import _kernels, reference

if importlib.util.find_spec("onnx") is None:
    pytest.skip("onnx is not installed", allow_module_level=True)

from onnx_adapter import Case, attention_call, cases, join_heads

LATER = {"window", "softcap"}  # options of the reference that attention() does not have yet
# what one rounding to the case's dtype allows: ONNX computes its float16 cases in float16 throughout
TOLERANCE = {"float32": (1e-5, 1e-6), "float16": (2e-3, 2e-3), "bfloat16": (2e-2, 2e-2)}


def by_name(operator: str) -> dict[str, Case]:
    return {case.name.removeprefix("test_"): case for case in cases(operator)}


ATTENTION, ROTARY, LAYER_NORM, RMS_NORM, GELU = map(
    by_name, ("Attention", "RotaryEmbedding", "LayerNormalization", "RMSNormalization", "Gelu")
)
FLOAT32 = {name: case for name, case in ATTENTION.items() if case.inputs["Q"].dtype == np.float32}
FAST = [name for name, case in FLOAT32.items() if not LATER & attention_call(case).options.keys()]


def assert_close(actual, expected):
    rtol, atol = TOLERANCE[expected.dtype.name]
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=rtol, atol=atol
    )


def test_no_case_is_left_out():
    counts = [len(group) for group in (ATTENTION, FLOAT32, FAST, ROTARY, LAYER_NORM, RMS_NORM, GELU)]
    assert counts == [93, 82, 67, 8, 19, 19, 4], "onnx changed its cases: read what is new, then count again"


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_the_reference(name):
    case = ATTENTION[name]
    call = attention_call(case)
    out = reference.attention(call.query, call.key, call.value, **call.options)
    assert_close(join_heads(out, case), case.outputs["Y"])
    if "present_key" in case.outputs:
        assert_close(call.key, case.outputs["present_key"])
        assert_close(call.value, case.outputs["present_value"])
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


@pytest.mark.parametrize("name", FAST)
def test_attention(isa, name):
    case = FLOAT32[name]
    call = attention_call(case)
    out = selfattn.attention(call.query, call.key, call.value, **call.options)
    assert_close(join_heads(out, case), case.outputs["Y"])
    if "qk_matmul_output" in case.outputs and case.attributes.get("qk_matmul_output_mode") == 3:
        weights = selfattn.attention_weights(call.query, call.key, **call.options)
        assert_close(weights, case.outputs["qk_matmul_output"])


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
    assert_close(_kernels.layer_norm(x, weight, bias, eps, 1), expected)


@pytest.mark.parametrize("name", RMS_NORM)
def test_rms_norm(isa, name):
    case = RMS_NORM[name]
    x, weight, eps = normalized_axes(case, "scale")
    expected = case.outputs["Y"].reshape(x.shape)
    assert_close(reference.rms_norm(x, weight, eps=eps), expected)
    assert_close(_kernels.rms_norm(x, weight, eps, 1), expected)


@pytest.mark.parametrize("name", GELU)
def test_gelu(isa, name):
    case = GELU[name]
    function = "gelu_tanh" if case.attributes.get("approximate") == b"tanh" else "gelu"
    assert_close(getattr(reference, function)(case.inputs["X"]), case.outputs["Y"])
    assert_close(getattr(_kernels, function)(case.inputs["X"]), case.outputs["Y"])
