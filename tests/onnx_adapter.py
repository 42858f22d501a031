"""ONNX's own operator test cases, and ONNX's arguments said in the words of selfattn."""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.backend.test.loader import load_model_tests


@dataclass(frozen=True)
class Case:
    """One node: its attributes, and its inputs and outputs under the names of the operator's schema."""

    name: str
    attributes: dict[str, Any]
    inputs: dict[str, NDArray]
    outputs: dict[str, NDArray]


@functools.cache
def _single_nodes() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the arithmetic that makes onnx's other cases
        tests = load_model_tests(kind="node")
    return [test for test in tests if test.model and len(test.model.graph.node) == 1]


def cases(operator: str) -> list[Case]:
    """Every case of one operator, generated in this process by the installed onnx."""
    return [case for test in _single_nodes() for case in _cases_of(test, operator)]


def _cases_of(test: Any, operator: str) -> Iterator[Case]:
    node = test.model.graph.node[0]
    if node.op_type != operator:
        return
    version = max(opset.version for opset in test.model.opset_import if opset.domain in ("", "ai.onnx"))
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for inputs, outputs in test.data_sets:
        yield Case(
            test.name,
            attributes,
            _named(node.input, schema.inputs, inputs),
            _named(node.output, schema.outputs, outputs),
        )


def _named(slots: Any, formals: Any, arrays: Any) -> dict[str, NDArray]:
    """An empty slot stands for an optional argument left out; only the others have an array."""
    present = [formal.name for slot, formal in zip(slots, formals, strict=False) if slot]
    return dict(zip(present, arrays, strict=True))


@dataclass(frozen=True)
class AttentionCall:
    """The same attention as a call of selfattn: the arrays, and the options that are not at their default."""

    query: NDArray
    key: NDArray
    value: NDArray
    options: dict[str, Any]


def attention_call(case: Case) -> AttentionCall:
    """Says an Attention case in our arguments: heads split, the cache joined, offsets made explicit."""
    query, key, value = (
        _split_heads(case.inputs[name], case.attributes.get(heads))
        for name, heads in (("Q", "q_num_heads"), ("K", "kv_num_heads"), ("V", "kv_num_heads"))
    )
    past_len = 0
    if "past_key" in case.inputs:
        past_len = case.inputs["past_key"].shape[2]
        key = np.concatenate([case.inputs["past_key"], key], axis=2)
        value = np.concatenate([case.inputs["past_value"], value], axis=2)
    lengths = case.inputs.get("nonpad_kv_seqlen")
    # the key at which ONNX sees query 0: for all items alike (an int), or (batch, 1, 1, 1)
    offset = past_len if lengths is None else (lengths - query.shape[2]).reshape(-1, 1, 1, 1)
    options = _mask(case, key.shape[2]) | _position(case, query.shape[2], key.shape[2], offset)
    if "mask" in options and "allowed" in options:
        options["mask"] = options["mask"] & options["allowed"]
    elif "allowed" in options:
        options["mask"] = options["allowed"]
    options.pop("allowed", None)
    if lengths is not None:
        options["kv_lengths"] = lengths
    for name in ("scale", "softcap"):
        if case.attributes.get(name):
            options[name] = case.attributes[name]
    return AttentionCall(query, key, value, options)


def join_heads(out: NDArray, case: Case) -> NDArray:
    """(batch, heads, length, dim) back to the rank that the case's query came in."""
    if case.inputs["Q"].ndim == 4:
        return out
    return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)


def _split_heads(x: NDArray, heads: int | None) -> NDArray:
    if x.ndim == 4:
        return x
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _mask(case: Case, kv_len: int) -> dict[str, NDArray]:
    """The dtype of ONNX's attn_mask says whose it is: bool selects, float adds. Keys beyond it are masked."""
    if "attn_mask" not in case.inputs:
        return {}
    mask = case.inputs["attn_mask"]
    boolean = mask.dtype == np.bool_
    missing = [(0, 0)] * (mask.ndim - 1) + [(0, kv_len - mask.shape[-1])]
    padded = np.pad(mask, missing, constant_values=False if boolean else -np.inf)
    return {"mask": padded} if boolean else {"bias": padded}


def _position(case: Case, q_len: int, kv_len: int, offset: Any) -> dict[str, Any]:
    """causal and window where ours stand at ONNX's offset; at any other offset, the mask that says it."""
    causal = bool(case.attributes.get("is_causal"))
    sides = [case.attributes.get(f"{side}_window_size", -1) for side in ("left", "right")]
    left, right = (None if size < 0 else size for size in sides)
    windowed = left is not None or right is not None
    window = {"window": (left, right)} if windowed else {}
    if isinstance(offset, int) and offset == kv_len - q_len:
        return ({"causal": "bottom_right"} if causal else {}) | window
    if isinstance(offset, int) and offset == 0 and (causal or not windowed):
        return ({"causal": "top_left"} if causal else {}) | window
    distance = np.arange(kv_len) - np.arange(q_len)[:, None] - offset
    allowed = np.ones(distance.shape, bool)
    for bound, beyond in ((0 if causal else None, distance), (left, -distance), (right, distance)):
        if bound is not None:
            allowed &= beyond <= bound
    return {"allowed": allowed}
