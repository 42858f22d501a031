# SPDX-License-Identifier: Apache-2.0
"""A training run in one safetensors file, from which it goes on as if it had not stopped, to the last bit.

Tensors: weights.NAME, first_moment.NAME and second_moment.NAME for each entry of the weights. Metadata: the
format, and as JSON the step, the optimizer's steps and the state of the random generator.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from selfattn._checks import as_integer
from selfattn.layers.base import protected
from selfattn.train.optimizer import AdamW
from selfattn.train.trees import (
    AnyTree,
    Shapes,
    Tree,
    flatten_float32,
    require_finite,
    require_shapes,
    shapes,
    unflatten,
)

FORMAT = "selfattn.checkpoint"
VERSION = "1"
SECTIONS = ("weights", "first_moment", "second_moment")


def save_checkpoint(
    path: str | os.PathLike[str],
    weights: Tree,
    optimizer: AdamW,
    step: int,
    rng: np.random.Generator | None = None,
) -> None:
    """Writes weights, moments, step and random state; `path` is the old file or the new one, whole.

    step is the number of steps done, so that a run goes on at it. rng is the generator of the training's
    randomness (what comes next, what is masked, seeds of dropout). Settings such as betas are the program's.
    Raises ValueError for weights that are not the optimizer's and for NaN and Inf, so that a run that went
    wrong does not overwrite what it could go on from; OSError where the file cannot be written.
    """
    path, step, safetensors = Path(path), as_integer("step", step), _safetensors()
    if step < 0:
        raise ValueError(f"step={step} must not be negative; it is the number of steps done")
    flat = flatten_float32("weights", weights)
    require_shapes("weights", shapes(flat), shapes(optimizer.first_moments), "the optimizer")
    parts = zip(SECTIONS, (flat, optimizer.first_moments, optimizer.second_moments), strict=True)
    tensors = {f"{section}.{n}": np.asarray(t, order="C") for section, part in parts for n, t in part.items()}
    require_finite(str(path), tensors)
    state = {
        "step": step,
        "optimizer_steps": optimizer.steps,
        "rng": None if rng is None else _require_generator(rng).bit_generator.state,
    }
    metadata = {"format": FORMAT, "version": VERSION, "state": json.dumps(state, default=np.ndarray.tolist)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        safetensors.numpy.save_file(tensors, part, metadata)
        with part.open("r+b") as file:
            os.fsync(file.fileno())  # before the name: a power cut leaves no empty file under it
        os.replace(part, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(
    path: str | os.PathLike[str],
    weights: AnyTree,
    optimizer: AdamW | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[AnyTree, int]:
    """The weights of the file, in a tree like `weights`, and the number of steps done.

    `optimizer` and `rng` take their state from the file, in place; without them it is not read. The arrays
    are read-only, so that layer.replace takes them without a copy. Raises FileNotFoundError; ValueError,
    naming the entry, for names and shapes that are not those of `weights`, for NaN and Inf, for a file that
    is truncated or not a checkpoint, and for a generator of another kind. After an error nothing has changed.
    """
    path, flat = Path(path), flatten_float32("weights", weights)
    sections = ("weights",) if optimizer is None else SECTIONS
    if optimizer is not None:
        require_shapes("weights", shapes(flat), shapes(optimizer.first_moments), "the optimizer")
    expected = {f"{section}.{name}": array.shape for section in sections for name, array in flat.items()}
    with _open(path) as file:
        state = _read_state(path, file.metadata() or {})
        require_shapes(str(path), _float32_shapes(path, file, sections), expected, "the model")
        tensors = {name: file.get_tensor(name) for name in expected}
    require_finite(str(path), tensors)
    if rng is not None:
        _restore(path, state["rng"], _require_generator(rng))
    if optimizer is not None:
        for name in flat:
            np.copyto(optimizer.first_moments[name], tensors[f"first_moment.{name}"])
            np.copyto(optimizer.second_moments[name], tensors[f"second_moment.{name}"])
        optimizer.steps = state["optimizer_steps"]
    loaded = {name: protected(tensors[f"weights.{name}"]) for name in flat}
    return unflatten(loaded, weights), state["step"]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """`safetensors.safe_open(path)`, whose errors name the file."""
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; load_checkpoint reads what save_checkpoint wrote")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _read_state(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    written = metadata.get("format"), metadata.get("version")
    if written != (FORMAT, VERSION):
        raise ValueError(f"{path} has format and version {written}; this reads {(FORMAT, VERSION)}")
    try:
        state: dict[str, Any] = json.loads(metadata["state"])
        counts, _ = (state["step"], state["optimizer_steps"]), state["rng"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"step and optimizer_steps are {counts}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no readable state in its metadata: {error!r}") from error
    return state


def _float32_shapes(path: Path, file: Any, sections: Collection[str]) -> Shapes:
    """The shapes of the tensors in these sections, from the file's header."""
    names = [name for name in file.keys() if name.partition(".")[0] in sections]  # noqa: SIM118
    found = {name: file.get_slice(name) for name in names}
    for name, tensor in found.items():
        if tensor.get_dtype() != "F32":
            raise ValueError(f"{path}: {name} has type {tensor.get_dtype()}; a checkpoint holds F32 only")
    return {name: tuple(tensor.get_shape()) for name, tensor in found.items()}


def _restore(path: Path, state: Any, rng: np.random.Generator) -> None:
    if state is None:
        raise ValueError(f"{path} was saved without rng: it has no random state to go on from")
    kind = type(rng.bit_generator).__name__
    found = state.get("bit_generator") if isinstance(state, dict) else None
    if found != kind:
        raise ValueError(
            f"{path} has the state of a {found} but rng is a {kind}; pass the kind it was saved of"
        )
    spare = type(rng.bit_generator)()  # a state that is refused half way has been taken half way
    try:
        spare.state = state
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} holds a random state that {kind} does not take: {error!r}") from error
    rng.bit_generator.state = spare.state


def _require_generator(rng: Any) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is a {type(rng).__name__}; it must be a Generator: numpy.random.default_rng(0)")
    return rng


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'selfattn[train]'") from error
    return safetensors
