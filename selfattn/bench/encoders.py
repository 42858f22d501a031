# SPDX-License-Identifier: Apache-2.0
"""The contenders of the encoder benchmark: the same weights, token ids in, token embeddings out.

The same form as in peers.py. A library that pads gets its padded batches ready made: neither the
tokenizer nor the padding is timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from selfattn.bench.peers import (
    Call,
    Variants,
    array_of,
    compile_openvino,
    inference_session,
    only_float32,
)
from selfattn.bench.workloads import Array, EncoderWorkload


def selfattn_variants(workload: EncoderWorkload, threads: int) -> Variants:
    import selfattn

    # The network under encode(): the peers too are measured without tokenizer and pooling.
    precision: Literal["bfloat16"] | None = "bfloat16" if workload.precision == "bfloat16" else None
    network = selfattn.TextEncoder.from_pretrained(workload.model, precision=precision).network
    return {"TextEncoder": lambda: partial(network, *workload.packed, num_threads=threads)}


def torch_variants(workload: EncoderWorkload, threads: int) -> Variants:
    import torch
    import transformers  # noqa: F401  both must be there before a variant is built

    torch.set_num_threads(threads)
    if workload.precision == "float32":
        return {"BertModel, sdpa": partial(torch_encoder, workload)}
    return {
        "BertModel, sdpa, bfloat16": partial(torch_encoder, workload, weights="bfloat16"),
        "BertModel, sdpa, autocast": partial(torch_encoder, workload, autocast=True),
    }


def torch_encoder(workload: EncoderWorkload, weights: str = "float32", autocast: bool = False) -> Call:
    import torch

    model = bert(workload.model, "sdpa", weights)
    inputs = [tuple(map(torch.from_numpy, batch)) for batch in workload.batches]

    def call() -> list[Array]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return [
                array_of(model(input_ids=ids, attention_mask=mask).last_hidden_state) for ids, mask in inputs
            ]

    return call


@cache
def bert(directory: Path, attention: str, weights: str = "float32") -> Any:
    import torch
    from transformers import BertModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = BertModel.from_pretrained(directory, attn_implementation=attention, add_pooling_layer=False)
    return model.eval().to(getattr(torch, weights))


def onnxruntime_variants(workload: EncoderWorkload, threads: int) -> Variants:
    only_float32(workload.precision)
    import onnxruntime  # noqa: F401  all three must be there before a variant is built
    import torch  # noqa: F401
    import transformers  # noqa: F401

    def build(graph: Callable[[Path], Path]) -> Call:
        session = inference_session(str(graph(workload.model)), threads)
        feeds = [dict(zip(("ids", "mask"), batch, strict=True)) for batch in workload.batches]
        return lambda: [session.run(None, feed)[0] for feed in feeds]

    return {
        "exported, sdpa": partial(build, partial(exported, "sdpa")),
        "exported, eager": partial(build, partial(exported, "eager")),
        "onnxruntime.transformers": partial(build, fused),
    }


def openvino_variants(workload: EncoderWorkload, threads: int) -> Variants:
    import openvino
    import torch  # noqa: F401  exports the graph
    import transformers  # noqa: F401

    def build(attention: str) -> Call:
        model = openvino.Core().read_model(exported(attention, workload.model))
        request = compile_openvino(model, threads, "LATENCY", workload.precision).create_infer_request()
        batches = [list(batch) for batch in workload.batches]

        # The request reuses its output: without share_outputs each batch's result is copied out of it.
        def call() -> list[Array]:
            return [request.infer(batch, share_inputs=True)[0] for batch in batches]

        return call

    return {attention: partial(build, attention) for attention in ("sdpa", "eager")}


def exported(attention: str, directory: Path) -> Path:
    """The model as PyTorch exports it to ONNX, once in a process."""
    path = graph_path(directory, attention)
    if not path.exists():
        export(bert(directory, attention), path)
    return path


def export(model: Any, path: Path) -> None:
    import warnings

    import torch

    class TokenEmbeddings(torch.nn.Module):  # type: ignore[misc]  # torch is optional, so it is Any
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    ids = torch.randint(model.config.vocab_size, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0  # without a padded row the trace would leave the mask out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(
            TokenEmbeddings().eval(),  # the exporter restores this mode in every submodule
            (ids, mask),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["ids", "mask"],
            output_names=["embeddings"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in ("ids", "mask", "embeddings")},
        )


def fused(directory: Path) -> Path:
    """The exported graph after onnxruntime's own transformer optimizer, which fuses BERT's attention."""
    from onnxruntime.transformers import optimizer

    path = graph_path(directory, "fused")
    if not path.exists():
        config = bert(directory, "eager").config
        model = optimizer.optimize_model(
            str(exported("eager", directory)),
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
        )
        model.save_model_to_file(str(path))
    return path


@cache
def graphs() -> TemporaryDirectory[str]:
    """Where the graphs of this process lie; it goes when the process ends."""
    return TemporaryDirectory(prefix="selfattn-bench-")


def graph_path(directory: Path, kind: str) -> Path:
    key = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    return Path(graphs().name) / f"{kind}-{key}.onnx"


ENCODER: dict[str, Callable[[EncoderWorkload, int], Variants]] = {
    "selfattn": selfattn_variants,
    "torch": torch_variants,
    "onnxruntime": onnxruntime_variants,
    "openvino": openvino_variants,
}
