# SPDX-License-Identifier: Apache-2.0
"""Checkpoint tensors from safetensors files, widened to float32 and checked. Never unpickles."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selfattn.layers.base import protected
from selfattn.text.errors import ModelNotFoundError, WeightsMismatchError, missing_extra
from selfattn.text.files import read_json, require_file
from selfattn.text.mapped import MappedFile

if TYPE_CHECKING:
    from selfattn.text.configuration import Configuration

DTYPES = ("F32", "F16", "BF16")
OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
BUFFERS = {"embeddings.position_ids", "embeddings.token_type_ids"}  # constants in old checkpoints
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
REMEDY = "copy or download the model again"

Tensors = dict[str, NDArray[np.float32]]


def load_encoder_tensors(directory: Path, configuration: Configuration) -> tuple[Tensors, list[MappedFile]]:
    """Every tensor of `configuration.shapes()`, float32, under the names given there. The layers' matrices
    that are float32 in their file are left where they lie; the files in question come second.

    Shapes and types are checked against the files' headers before any data is read. Raises
    WeightsMismatchError for missing, surplus, wrongly shaped or wrongly typed tensors, ValueError for a
    damaged file or a NaN or Inf.
    """
    files = _weight_files(directory)
    own_names = {
        name: _plain_name(name, configuration.family.prefixes) for names in files.values() for name in names
    }
    expected = dict(configuration.shapes())
    _check_names(expected, own_names.values(), configuration, directory)
    layers = configuration.family.layers
    matrices = {name for name, shape in expected.items() if name.startswith(layers) and len(shape) == 2}
    tensors: Tensors = {}
    mapped: list[MappedFile] = []
    for path, names in files.items():
        wanted = {name: expected[own_names[name]] for name in names if own_names[name] in expected}
        with _open_checked(path, wanted) as file:
            types = {name: file.get_slice(name).get_dtype() for name in wanted}
            in_place = {name for name in wanted if own_names[name] in matrices and types[name] == "F32"}
            if in_place:
                mapped.append(MappedFile(path))
            for name in wanted:
                tensor = mapped[-1].tensor(name) if name in in_place else _read(file, name)
                tensors[own_names[name]] = _finite(path, name, tensor)
    return tensors, mapped


def load_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The named tensors of one safetensors file as float32, each of exactly the given shape and finite."""
    with _open_checked(path, shapes) as file:
        return {name: _finite(path, name, _read(file, name)) for name in shapes}


@contextmanager
def _open_checked(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Any]:
    """The file, once its header has the named tensors, of exactly these shapes and of types that we read."""
    with open_safetensors(path) as file:
        if absent := sorted(set(shapes) - set(file.keys())):
            raise WeightsMismatchError(
                f"{path} lacks {len(absent)} of {len(shapes)} tensors, first {absent[0]!r}: {REMEDY}"
            )
        slices = {name: file.get_slice(name) for name in shapes}
        for name, shape in shapes.items():
            _check_header(path, name, tuple(slices[name].get_shape()), slices[name].get_dtype(), shape)
        if any(part.get_dtype() == "BF16" for part in slices.values()):
            _teach_numpy_bfloat16()
        yield file


def _read(file: Any, name: str) -> NDArray[np.float32]:
    tensor: NDArray[np.float32] = file.get_tensor(name).astype(np.float32, copy=False)
    return tensor


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """`safetensors.safe_open(path)`, whose errors name the file and its size."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra("safetensors") from error
    require_file(path, REMEDY)
    try:
        with safe_open(path, "np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error} ({_describe_size(path)}): {REMEDY}") from error


def _describe_size(path: Path) -> str:
    """The size of a safetensors file beside the size that its header speaks of, if that can be read."""
    size = path.stat().st_size
    found = f"the file holds {size} bytes"
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            return f"{found}, its header alone needs {header_size + 8 if size >= 8 else 8}"
        try:
            entries = json.loads(file.read(header_size))
            end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
            return f"{found}, its header describes {8 + header_size + int(end)}"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return f"{found}, its header can't be read"


def has_weights(directory: Path) -> bool:
    """Whether the weights' file is there, or the index of its shards with all of them."""
    index = directory / INDEX
    shards = _shards(directory, index) if index.exists() else ()
    return (directory / SINGLE).exists() or (bool(shards) and all(path.exists() for path in shards))


def _weight_files(directory: Path) -> dict[Path, list[str]]:
    """The files that hold the weights, and the names of the tensors in each."""
    single, index = directory / SINGLE, directory / INDEX
    if not single.exists() and index.exists():
        return _shards(directory, index)
    refuse_pickle(directory)
    with open_safetensors(single) as file:
        return {single: list(file.keys())}


def refuse_pickle(directory: Path) -> None:
    """Raise ModelNotFoundError with the way out when a directory holds pickled weights only."""
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickles and not (directory / "model.safetensors").exists():
        raise ModelNotFoundError(
            f"{directory} has no model.safetensors, only {pickles[0]}, a pickle, which can run code and "
            "is never opened here. Convert a model that you trust once, where PyTorch is installed: "
            "transformers.AutoModel.from_pretrained(directory).save_pretrained(directory)"
        )


def _shards(directory: Path, index: Path) -> dict[Path, list[str]]:
    weight_map = read_json(index, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map: {REMEDY}")
    files: dict[Path, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise ValueError(f"{index} places {tensor!r} in {shard!r}, not in a .safetensors file beside it")
        files.setdefault(directory / shard, []).append(tensor)
    return files


def _plain_name(name: str, prefixes: tuple[str, ...]) -> str:
    """A tensor's name without the prefix of a task model, and with today's names in LayerNorm."""
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    for old, new in OLD_NAMES.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _check_names(
    expected: Mapping[str, Any], found: Iterable[str], configuration: Configuration, directory: Path
) -> None:
    """Task heads and poolers are ignored; a missing or a surplus encoder tensor is an error."""
    counts = Counter(found)
    problems = {
        "are missing": expected.keys() - counts.keys(),
        "surplus ones are": {
            name
            for name in counts.keys() - expected.keys() - BUFFERS
            if name.startswith(configuration.family.encoder)
        },
        "are repeated": {name for name in expected if counts[name] > 1},
    }
    for problem, names in problems.items():
        if names:
            listed = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
            raise WeightsMismatchError(
                f"{directory}: config.json describes {len(expected)} tensors ({configuration.num_layers} "
                f"layers), but {len(names)} {problem} in the weights' files: {listed}"
            )


def _check_header(
    path: Path, name: str, shape: tuple[int, ...], dtype: str, expected: tuple[int, ...]
) -> None:
    if shape != expected:
        raise WeightsMismatchError(f"{path}: {name} has shape {shape}, the configuration says {expected}")
    if dtype not in DTYPES:
        raise WeightsMismatchError(f"{path}: {name} has type {dtype}, expected one of {', '.join(DTYPES)}")


def _teach_numpy_bfloat16() -> None:
    """Importing ml_dtypes registers the type that safetensors asks NumPy for."""
    try:
        import ml_dtypes  # noqa: F401
    except ImportError as error:
        raise missing_extra("ml_dtypes") from error


def _finite(path: Path, name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    protected(tensor)
    with np.errstate(over="ignore", invalid="ignore"):
        total = tensor.sum()  # not finite if any element is not; a few times cheaper than asking every one
    if not math.isfinite(total):
        count = tensor.size - int(np.isfinite(tensor).sum())
        if count:
            raise ValueError(
                f"{path}: {name} holds {count} NaN or Inf among its {tensor.size} values: {REMEDY}"
            )
    return tensor
