# SPDX-License-Identifier: Apache-2.0
"""ONNX's own operator test cases, and ONNX's arguments said in the words of selfattn."""

import functools
import warnings
from collections.abc import Callable, Iterator
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
    """Says an Attention case in our arguments: heads split, the cache joined, positions in our words."""
    query, key, value = split_heads(case)
    past_len = 0
    if "past_key" in case.inputs:
        past_len = case.inputs["past_key"].shape[2]
        key = np.concatenate([case.inputs["past_key"], key], axis=2)
        value = np.concatenate([case.inputs["past_value"], value], axis=2)
    options = _position(case, query.shape[2], key.shape[2], past_len)
    for name, array in _mask(case, key.shape[2]).items():
        options[name] = options[name] & array if name in options else array
    if "nonpad_kv_seqlen" in case.inputs:
        options["kv_lengths"] = case.inputs["nonpad_kv_seqlen"]
    for name in ("scale", "softcap"):
        if case.attributes.get(name):
            options[name] = case.attributes[name]
    return AttentionCall(query, key, value, options)


def split_heads(case: Case) -> list[NDArray]:
    """Q, K and V as (batch, heads, length, dim), without the past."""
    names = (("Q", "q_num_heads"), ("K", "kv_num_heads"), ("V", "kv_num_heads"))
    return [_split_heads(case.inputs[name], case.attributes.get(heads)) for name, heads in names]


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


def _position(case: Case, q_len: int, kv_len: int, past_len: int) -> dict[str, Any]:
    """causal and window. ONNX puts query i at key past_len + i, or with lengths at the item's last keys;
    where none of our alignments does, a mask says which keys it sees."""
    causal = bool(case.attributes.get("is_causal"))
    sides = [case.attributes.get(f"{side}_window_size", -1) for side in ("left", "right")]
    left, right = (None if size < 0 else size for size in sides)
    window = {} if left is right is None else {"window": (left, right)}
    lengths = case.inputs.get("nonpad_kv_seqlen")
    if not causal and not window:
        return {}
    if past_len == kv_len - q_len and lengths is None:
        return {"causal": "bottom_right"} | window if causal else window
    if causal and lengths is not None:
        return {"causal": "bottom_right"} | window
    if causal and past_len == 0:
        return {"causal": "top_left"} | window
    offset = past_len if lengths is None else (lengths - q_len).reshape(-1, 1, 1, 1)
    distance = np.arange(kv_len) - np.arange(q_len)[:, None] - offset
    seen = np.ones(distance.shape, bool)
    for bound, beyond in ((0 if causal else None, distance), (left, -distance), (right, distance)):
        if bound is not None:
            seen &= beyond <= bound
    return {"mask": seen}


# What the graph in a FlexAttention's score_mod does to the scores (q_len, kv_len), as options of ours.
_SCORE_MODS: dict[str | None, Callable[[int, int], dict[str, Any]]] = {
    None: lambda q_len, kv_len: {},
    "score_mod_bias": lambda q_len, kv_len: {"bias": np.full(1, 0.5, np.float32)},
    "score_mod_causal_mask": lambda q_len, kv_len: {"causal": "top_left"},
    "score_mod_soft_cap": lambda q_len, kv_len: {"softcap": 20.0},
    "score_mod_relative_positional": lambda q_len, kv_len: {
        "bias": np.subtract.outer(np.arange(q_len), np.arange(kv_len)).astype(np.float32)
    },
}


def flex_attention_call(case: Case) -> AttentionCall | None:
    """The same for FlexAttention; None where it changes the weights after the softmax: no option does."""
    if "prob_mod" in case.attributes:
        return None
    query, key, value = (case.inputs[name] for name in "QKV")
    graph = case.attributes.get("score_mod")
    options = _SCORE_MODS[graph.name if graph else None](query.shape[2], key.shape[2])
    if "scale" in case.attributes:
        options["scale"] = case.attributes["scale"]
    return AttentionCall(query, key, value, options)
