# SPDX-License-Identifier: Apache-2.0
"""The contenders of the attention operator.

A contender is a function (workload, threads) -> {variant: build}, and build() -> call() -> result. It
imports its library itself, so that a library that is not installed makes it absent, not the benchmark
fail. The fastest variant that verifies represents the contender. Whatever a library lets its users do
ahead of the call (its own layout, bound buffers, a compiled graph) is done in build() and is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from selfattn.bench.workloads import Array, AttentionWorkload, bfloat16

Call = Callable[[], Any]
Variants = dict[str, Callable[[], Call]]


class UnsupportedError(Exception):
    """A contender has no way to compute this row."""


class PrecisionError(Exception):
    """A contender has no way to compute in this precision, whatever the row."""


def only_float32(precision: str) -> None:
    if precision != "float32":
        raise PrecisionError(f"it has no {precision} products")


def selfattn_variants(workload: AttentionWorkload, threads: int) -> Variants:
    import selfattn

    def build(dtype: Any, **options: Any) -> Call:
        arrays = [array.astype(dtype, copy=False) for array in workload.arrays]
        out = np.empty(workload.shape, dtype)
        return partial(selfattn.attention, *arrays, out=out, num_threads=threads, **options)

    if workload.precision == "float32":
        return {"attention": lambda: build(np.float32)}
    return {
        "precision, float32 arrays": lambda: build(np.float32, precision="bfloat16"),
        "precision, bfloat16 arrays": lambda: build(bfloat16(), precision="bfloat16"),
    }


def limit_numpy(threads: int) -> None:
    """So many threads for NumPy's BLAS, until the next limit."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise ImportError("its threads are set with threadpoolctl, which is not installed") from None
    threadpool_limits(threads, user_api="blas")


def numpy_variants(workload: AttentionWorkload, threads: int) -> Variants:
    from selfattn import reference

    only_float32(workload.precision)
    limit_numpy(threads)
    query, key, value = workload.arrays
    scale = np.float32(workload.head_dim**-0.5)

    return {
        "reference": lambda: partial(reference.attention, query, key, value),
        "matmul": lambda: lambda: weighted_sum((query * scale) @ key.swapaxes(-1, -2), value),
        "einsum": lambda: (
            lambda: weighted_sum(np.einsum("bhqd,bhkd->bhqk", query * scale, key, optimize=True), value)
        ),
    }


def weighted_sum(scores: Array, value: Array) -> Array:
    """softmax(scores) * value; scores are overwritten."""
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    out: Array = (scores @ value) / scores.sum(-1, keepdims=True)
    return out


def torch_variants(workload: AttentionWorkload, threads: int) -> Variants:
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(x).to(getattr(torch, workload.precision)) for x in workload.arrays]

    def call() -> Array:
        with torch.inference_mode():
            return array_of(torch.nn.functional.scaled_dot_product_attention(*tensors))

    return {"scaled_dot_product_attention": lambda: call}


def array_of(tensor: Any) -> Array:
    """PyTorch's numbers, not copied; it gives NumPy no bfloat16."""
    import torch

    narrow = tensor.dtype == torch.bfloat16
    array: Array = tensor.view(torch.int16).numpy().view(bfloat16()) if narrow else tensor.numpy()
    return array


def onnxruntime_variants(workload: AttentionWorkload, threads: int) -> Variants:
    only_float32(workload.precision)
    import onnx  # noqa: F401  both must be there before a variant is built
    import onnxruntime  # noqa: F401

    return {
        "Attention-23": partial(onnxruntime_attention, workload, threads),
        "MultiHeadAttention": partial(onnxruntime_multi_head, workload, threads),
    }


def onnxruntime_attention(workload: AttentionWorkload, threads: int) -> Call:
    """ai.onnx's Attention on (batch, heads, length, head_dim)."""
    session = attention_session([workload.shape] * 4, threads)
    return bound_call(session, workload.arrays, np.empty(workload.shape, np.float32))


def attention_session(shapes: Sequence[tuple[int, ...]], threads: int) -> Any:
    """Of ai.onnx's Attention, with the shapes of query, key, value and output."""
    from onnx import helper

    node = helper.make_node("Attention", ["query", "key", "value"], ["out"])
    return onnx_session(node, shapes, [helper.make_opsetid("", 23)], threads)


def onnxruntime_multi_head(workload: AttentionWorkload, threads: int) -> Call:
    """com.microsoft's MultiHeadAttention on its own layout, (batch, length, heads * head_dim)."""
    from onnx import helper

    batch, heads, length, head_dim = workload.shape
    shape = (batch, length, heads * head_dim)
    domain = "com.microsoft"
    node = helper.make_node(
        "MultiHeadAttention", ["query", "key", "value"], ["out"], domain=domain, num_heads=heads
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    arrays = [np.ascontiguousarray(x.swapaxes(1, 2)).reshape(shape) for x in workload.arrays]
    call = bound_call(onnx_session(node, [shape] * 4, opsets, threads), arrays, np.empty(shape, np.float32))
    return lambda: call().reshape(batch, length, heads, head_dim).swapaxes(1, 2)


def onnx_session(node: Any, shapes: Sequence[tuple[int, ...]], opsets: list[Any], threads: int) -> Any:
    """A session for a graph of one node, with the shapes of its inputs and of its output."""
    from onnx import TensorProto, helper

    names = (*node.input, *node.output)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    graph = helper.make_graph([node], "attention", tensors[:-1], tensors[-1:])
    # The IR version of opset 23 and not the newest: onnx may be ahead of what onnxruntime can read.
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return inference_session(model.SerializeToString(), threads)


def inference_session(model: bytes | str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound_call(session: Any, arrays: Any, out: Array) -> Call:
    """Inputs and output bound once, so that a call copies nothing."""
    binding = session.io_binding()
    names = [tensor.name for tensor in session.get_inputs()]
    for name, array in zip(names, arrays, strict=True):
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)

    def call(_inputs: Any = arrays) -> Array:  # the binding holds addresses: keep the arrays alive
        session.run_with_iobinding(binding)
        return out

    return call


def openvino_variants(workload: AttentionWorkload, threads: int) -> Variants:
    model = openvino_attention([workload.shape] * 3)

    def build(hint: str) -> Call:
        request = compile_openvino(model, threads, hint, workload.precision).create_infer_request()
        arrays = list(workload.arrays)
        return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]

    return {hint: partial(build, hint) for hint in ("LATENCY", "THROUGHPUT")}


def openvino_attention(shapes: Sequence[tuple[int, ...]]) -> Any:
    """A model of one attention call on float32 query, key and value of these shapes."""
    import openvino

    operators = openvino.opset13
    inputs = [operators.parameter(shape, np.float32) for shape in shapes]
    return openvino.Model([operators.scaled_dot_product_attention(*inputs, causal=False)], inputs)


def compile_openvino(model: Any, threads: int, hint: str, precision: str = "float32") -> Any:
    import openvino

    settings = {  # its own default is bfloat16 wherever the processor has it
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": hint,
        "NUM_STREAMS": 1,  # one request at a time may use every thread
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


OPERATOR: dict[str, Callable[[AttentionWorkload, int], Variants]] = {
    "selfattn": selfattn_variants,
    "numpy": numpy_variants,
    "torch": torch_variants,
    "onnxruntime": onnxruntime_variants,
    "openvino": openvino_variants,
}
