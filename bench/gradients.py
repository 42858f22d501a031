# SPDX-License-Identifier: Apache-2.0
"""Forward and backward beside PyTorch's: `python bench/gradients.py [--threads 1,2] [--json FILE]`.

The operator at the shapes below, full and causal, and a training step of an encoder: forward, backward,
AdamW. Both sides compute in float32 on the same threads, in turns; gradients are compared before anything is
timed. Without PyTorch only our own figures are printed.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import selfattn
from selfattn.bench import machine, report, timing

SHAPES = [(8, 12, 128, 64), (1, 12, 512, 64), (1, 8, 2048, 64), (2, 8, 1024, 128)]
LAYERS, WIDTH, HEADS, D_FF, BATCH, LENGTH = 6, 384, 12, 1536, 32, 128
TOLERANCE = 5e-5  # of the largest gradient
HAS_TORCH = importlib.util.find_spec("torch") is not None

Call = Callable[[], Any]


# ---- the operator ----


def operator_inputs(shape: tuple[int, ...]) -> list[np.ndarray]:
    """query, key, value and the gradient of the output."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]


def our_operator(shape: tuple[int, ...], causal: bool, threads: int) -> tuple[Call, Call]:
    """Forward and backward; backward alone."""
    query, key, value, grad_out = operator_inputs(shape)
    how: dict[str, Any] = {"causal": causal, "num_threads": threads}
    out, lse = selfattn.attention(query, key, value, return_lse=True, **how)

    def backward() -> Any:
        return selfattn.attention_backward(grad_out, query, key, value, out, lse, **how)

    def both() -> Any:
        new_out, new_lse = selfattn.attention(query, key, value, return_lse=True, **how)
        return selfattn.attention_backward(grad_out, query, key, value, new_out, new_lse, **how)

    return both, backward


def torch_operator(shape: tuple[int, ...], causal: bool, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    query, key, value, grad_out = (torch.from_numpy(x) for x in operator_inputs(shape))
    inputs = [x.requires_grad_() for x in (query, key, value)]

    def both() -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=causal)
        return [x.numpy() for x in torch.autograd.grad(out, inputs, grad_out)]

    return both


# ---- a training step ----


def our_step(threads: int) -> tuple[Call, list[np.ndarray]]:
    """One step of training, and the encoder's weights as a list that PyTorch's side reads."""
    rng = np.random.default_rng(0)
    layers = [selfattn.EncoderLayer.initialize(WIDTH, HEADS, D_FF, rng=rng) for _ in range(LAYERS)]
    encoder = selfattn.Encoder(layers)
    x = rng.standard_normal((BATCH, LENGTH, WIDTH), dtype=np.float32)
    grad_y = rng.standard_normal((BATCH, LENGTH, WIDTH), dtype=np.float32)
    optimizer = selfattn.train.AdamW(encoder.weights(), lr=1e-4)

    def step() -> Any:
        _, saved = encoder.forward(x, num_threads=threads)
        _, grads = encoder.backward(saved, grad_y, num_threads=threads)
        return optimizer.step(encoder.weights(), grads)

    return step, [x, grad_y]


def torch_step(threads: int, x: np.ndarray, grad_y: np.ndarray) -> Call:
    import torch

    torch.set_num_threads(threads)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, D_FF, dropout=0.0, activation="gelu", batch_first=True
    )
    model = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    words, grad = torch.from_numpy(x), torch.from_numpy(grad_y)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        model(words).backward(grad)
        optimizer.step()

    return step


# ---- measuring ----


def verify(ours: Any, theirs: Any) -> None:
    for our, their in zip(ours, theirs, strict=True):
        error = np.abs(our - their).max() / np.abs(their).max()
        if not error <= TOLERANCE:
            raise timing.WrongResultError(f"gradients differ by {error:.1e} of the largest")


def operator_result(shape: tuple[int, ...], causal: bool, threads: int, rounds: int, min_time: float) -> Any:
    both, backward = our_operator(shape, causal, threads)
    calls = {"selfattn": both, "backward": backward}
    if HAS_TORCH:
        calls["torch"] = torch_operator(shape, causal, threads)
        verify(both(), calls["torch"]())
    batch, heads, length, head_dim = shape
    gflop = 4e-9 * batch * heads * length * length * head_dim

    def timed() -> Any:
        seconds, peaks = timing.beside_limit(machine.multiply_adds(threads), calls, rounds, min_time)
        backward_gflops = 2.5 * gflop / statistics.median(seconds["backward"])
        result = {
            "what": "causal" if causal else "full",
            "shape": "x".join(map(str, shape)),
            "threads": threads,
            "gflops": 3.5 * gflop / statistics.median(seconds["selfattn"]),
            "backward_gflops": backward_gflops,
            "backward_of_peak": backward_gflops / max(peaks),
            "peak_gflops": peaks,
        }
        return result | against_torch(seconds)

    return report.steadily(timed)


def step_result(threads: int, rounds: int, min_time: float) -> Any:
    step, inputs = our_step(threads)
    calls = {"selfattn": step} | ({"torch": torch_step(threads, *inputs)} if HAS_TORCH else {})
    shape = f"{LAYERS} layers, {WIDTH} wide, {BATCH}x{LENGTH}"

    def timed() -> Any:
        seconds, peaks = timing.beside_limit(machine.multiply_adds(threads), calls, rounds, min_time)
        ours = 1e3 * statistics.median(seconds["selfattn"])
        result = {"what": "training step", "shape": shape, "threads": threads, "ms": ours}
        return result | {"peak_gflops": peaks} | against_torch(seconds)

    return report.steadily(timed)


def against_torch(seconds: dict[str, list[float]]) -> dict[str, Any]:
    if "torch" not in seconds:
        return {}
    ratios = [t / s for t, s in zip(seconds["torch"], seconds["selfattn"], strict=True)]
    over = report.over_rounds(ratios)
    return {"torch_over_ours": over["ratio"], "quartiles": over["quartiles"]}


def shown(result: dict[str, Any]) -> str:
    figures = f"{result['ms']:.0f} ms" if "ms" in result else f"{result['gflops']:.0f} GFLOP/s"
    if "backward_of_peak" in result and result["what"] == "full":
        rate, peak = result["backward_gflops"], report.divisor(result)
        figures += f", backward {rate:.1f} of {peak:.1f} GFLOP/s ({report.of_limit(rate, peak):.0%})"
    if "torch_over_ours" in result:
        figures += f", PyTorch's time / ours {result['torch_over_ours']:.2f}"
    threads = report.words_of_threads(result["threads"])
    return f"{result['what']:<14}{result['shape']:<34}{threads:<11}{figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Forward and backward, beside PyTorch's.")
    parser.add_argument("--threads", default="1,2", help="comma-separated (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-time", type=float, default=0.05)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = []
    for threads in map(int, options.threads.split(",")):
        jobs: list[Call] = [
            lambda s=shape, c=causal, t=threads: operator_result(s, c, t, options.rounds, options.min_time)
            for causal in (False, True)
            for shape in SHAPES
        ]
        jobs.append(lambda t=threads: step_result(t, options.rounds, options.min_time))
        for job in jobs:
            results.append(job())
            print(shown(results[-1]), *report.marks(results[-1]), sep="  ", flush=True)
    report.write_measured("gradients", results, options, "threads", "rounds", "min_time")


if __name__ == "__main__":
    main()
