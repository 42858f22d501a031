"""The contenders of the attention operator.

A contender is a function (workload, threads) -> {variant: build}, and build() -> call() -> result. It
imports its library itself, so that a library that is not installed makes it absent, not the benchmark
fail. The fastest variant that verifies represents the contender. Whatever a library lets its users do
ahead of the call (its own layout, bound buffers, a compiled graph) is done in build() and is not timed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from workloads import AttentionWorkload

Call = Callable[[], Any]
Variants = dict[str, Callable[[], Call]]


def selfattn_variants(workload: AttentionWorkload, threads: int) -> Variants:
    import selfattn

    out = np.empty(workload.shape, np.float32)
    call = partial(selfattn.attention, *workload.arrays, out=out, num_threads=threads)
    return {"attention": lambda: call}


def numpy_variants(workload: AttentionWorkload, threads: int) -> Variants:
    from threadpoolctl import threadpool_limits

    from selfattn import reference

    threadpool_limits(threads, user_api="blas")  # stays until the next limit
    query, key, value = workload.arrays
    scale = np.float32(workload.head_dim**-0.5)

    def weighted_sum(scores: np.ndarray) -> np.ndarray:
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        return (scores @ value) / scores.sum(-1, keepdims=True)

    return {
        "reference": lambda: partial(reference.attention, query, key, value),
        "matmul": lambda: lambda: weighted_sum((query * scale) @ key.swapaxes(-1, -2)),
        "einsum": lambda: (
            lambda: weighted_sum(np.einsum("bhqd,bhkd->bhqk", query * scale, key, optimize=True))
        ),
    }


def torch_variants(workload: AttentionWorkload, threads: int) -> Variants:
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in workload.arrays]

    def call() -> np.ndarray:
        with torch.inference_mode():
            return torch.nn.functional.scaled_dot_product_attention(*tensors).numpy()

    return {"scaled_dot_product_attention": lambda: call}


def onnxruntime_variants(workload: AttentionWorkload, threads: int) -> Variants:
    import onnx  # noqa: F401  both must be there before a variant is built
    import onnxruntime  # noqa: F401

    return {
        "Attention-23": partial(onnxruntime_attention, workload, threads),
        "MultiHeadAttention": partial(onnxruntime_multi_head, workload, threads),
    }


def onnxruntime_attention(workload: AttentionWorkload, threads: int) -> Call:
    """ai.onnx's Attention on (batch, heads, length, head_dim)."""
    from onnx import helper

    node = helper.make_node("Attention", ["query", "key", "value"], ["out"])
    session = onnx_session(node, workload.shape, [helper.make_opsetid("", 23)], threads)
    return bound_call(session, workload.arrays, np.empty(workload.shape, np.float32))


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
    call = bound_call(onnx_session(node, shape, opsets, threads), arrays, np.empty(shape, np.float32))
    return lambda: call().reshape(batch, length, heads, head_dim).swapaxes(1, 2)


def onnx_session(node: Any, shape: tuple[int, ...], opsets: list[Any], threads: int) -> Any:
    """A session for a graph of one node whose inputs and output all have this shape."""
    from onnx import TensorProto, helper

    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (*node.input, *node.output)
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


def bound_call(session: Any, arrays: Any, out: np.ndarray) -> Call:
    """Inputs and output bound once, so that a call copies nothing."""
    binding = session.io_binding()
    names = [tensor.name for tensor in session.get_inputs()]
    for name, array in zip(names, arrays, strict=True):
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)

    def call(_inputs: Any = arrays) -> np.ndarray:  # the binding holds addresses: keep the arrays alive
        session.run_with_iobinding(binding)
        return out

    return call


def openvino_variants(workload: AttentionWorkload, threads: int) -> Variants:
    import openvino

    operators = openvino.opset13
    inputs = [operators.parameter(workload.shape, np.float32) for _ in range(3)]
    model = openvino.Model([operators.scaled_dot_product_attention(*inputs, causal=False)], inputs)

    def build(hint: str) -> Call:
        request = compile_openvino(model, threads, hint).create_infer_request()
        arrays = list(workload.arrays)
        return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]

    return {hint: partial(build, hint) for hint in ("LATENCY", "THROUGHPUT")}


def compile_openvino(model: Any, threads: int, hint: str) -> Any:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 wherever the processor has it
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
