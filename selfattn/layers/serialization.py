# SPDX-License-Identifier: Apache-2.0
"""An encoder as one safetensors file: its tensors by name, and in the metadata, as JSON, everything else.

The configuration also lists the shape of every tensor, so that a file that lost or gained one is recognised.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from selfattn.layers.base import Array, Layer, protected

FORMAT = "selfattn.encoder"
VERSION = "1"


def save(encoder: Layer, path: str | os.PathLike[str]) -> None:
    """Writes under a temporary name first: `path` is the old file or the whole new one, never a half."""
    tensors, settings = _take_apart(encoder)
    configuration = {"encoder": settings, "tensors": {name: list(t.shape) for name, t in tensors.items()}}
    metadata = {"format": FORMAT, "version": VERSION, "configuration": json.dumps(configuration)}
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _safetensors().numpy.save_file(tensors, part, metadata)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], encoder: type[Layer], parts: tuple[type, ...]) -> Any:
    """Reads a file that `save` wrote: an instance of the class `encoder`, made of instances of `parts`."""
    kinds = {kind.__name__: kind for kind in (encoder, *parts)}
    tensors, configuration = _read(Path(path))
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if problems := _differences(configuration["tensors"], found):
        raise ValueError(f"{path} does not hold the tensors of its configuration: {'; '.join(problems)}")
    try:
        return _put_together(kinds, tensors, configuration["encoder"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe an encoder: {error}") from error


def _read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; Encoder.load reads the file that Encoder.save wrote")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            written = metadata.get("format"), metadata.get("version")
            if written != (FORMAT, VERSION):
                raise ValueError(f"{path} has format and version {written}; this reads {(FORMAT, VERSION)}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            configuration = json.loads(metadata["configuration"])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} has no readable configuration in its metadata: {error}") from error
    parts = configuration if isinstance(configuration, dict) else {}
    if not (isinstance(parts.get("encoder"), dict) and isinstance(parts.get("tensors"), dict)):
        raise ValueError(f"{path} has a configuration that does not describe an encoder and its tensors")
    if parts["encoder"].get("class") != "Encoder":
        raise ValueError(f"{path} describes a {parts['encoder'].get('class')}, not an Encoder")
    for tensor in tensors.values():
        protected(tensor)
    return tensors, configuration


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    missing = [f"missing {name}" for name in expected if name not in found]
    unexpected = [f"unexpected {name}" for name in found if name not in expected]
    shaped = [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return missing + unexpected + shaped


def _take_apart(layer: Any, prefix: str = "") -> tuple[dict[str, Array], dict[str, Any]]:
    """A layer's arrays by dotted name, and its settings as a JSON object with the parts inside it nested."""
    tensors: dict[str, Array] = {}
    settings: dict[str, Any] = {"class": type(layer).__name__}

    def part(name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            tensors[prefix + name] = np.ascontiguousarray(value)
        elif dataclasses.is_dataclass(value):
            inner, nested = _take_apart(value, f"{prefix}{name}.")
            tensors.update(inner)
            return nested
        elif isinstance(value, tuple):
            return [part(f"{name}.{i}", item) for i, item in enumerate(value)]
        else:
            return value
        return None

    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        described = part(field.name, value)
        is_missing = value is None and field.default is dataclasses.MISSING  # a norm that may be absent
        if described is not None or is_missing:
            settings[field.name] = described
    return tensors, settings


def _put_together(
    kinds: dict[str, type], tensors: dict[str, Array], settings: dict[str, Any], prefix: str = ""
) -> Any:
    """The inverse of _take_apart."""

    def part(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _put_together(kinds, tensors, value, f"{prefix}{name}.")
        if isinstance(value, list):
            return tuple(part(f"{name}.{i}", item) for i, item in enumerate(value))
        return value

    name = settings["class"]
    if name not in kinds:
        raise ValueError(f"{name!r} is not a layer")
    values = {key: part(key, value) for key, value in settings.items() if key != "class"}
    own = (key for key in tensors if key.startswith(prefix) and "." not in key[len(prefix) :])
    return kinds[name](**values, **{key[len(prefix) :]: tensors[key] for key in own})


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("saving and loading needs safetensors: pip install 'selfattn[text]'") from error
    return safetensors
