# SPDX-License-Identifier: Apache-2.0
"""A model's directory with other weights, for TextEncoder.from_pretrained to read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from selfattn.text.checkpoint import INDEX, SINGLE, load_encoder_tensors
from selfattn.text.configuration import Configuration
from selfattn.text.errors import missing_extra
from selfattn.text.files import read_json, read_optional_json
from selfattn.text.network import Network, checkpoint_tensors
from selfattn.text.sentence_pooling import read_modules
from selfattn.text.tokenizer import text_options_path

COPIED = (".json", ".txt", ".safetensors")  # no pickles, no exports to other runtimes


def save_model(
    source: Path, target: Path, configuration: Configuration, network: Network, max_seq_length: int
) -> None:
    """The files of `source`, which the network's model was loaded from, with the network's weights.

    They are written under a temporary name first: `target` is there whole, or not at all. Raises
    FileExistsError for a target that is there and is no empty directory.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; save to a new directory, or remove it first")
    folders = [module["path"] for module in read_modules(source)]
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        for folder in {"", *folders}:
            _copy(source / folder, part / folder, weights=folder != folders[0])
        _write_weights(source / folders[0], part / folders[0], configuration, network)
        _change(part / folders[0] / "config.json", dtype="float32", torch_dtype="float32")
        options = text_options_path(part / folders[0])
        _write(options, read_optional_json(options) | {"max_seq_length": max_seq_length})
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy(source: Path, target: Path, *, weights: bool) -> None:
    """The files of one folder, should there be any; without `weights`, not those."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir() if source.is_dir() else ():
        is_weights = path.suffix == ".safetensors" or path.name == INDEX
        if path.is_file() and path.suffix in COPIED and (weights or not is_weights):
            shutil.copyfile(path, target / path.name)


def _write_weights(source: Path, target: Path, configuration: Configuration, network: Network) -> None:
    """One file of float32 tensors. Rows that a network has no use for stay what they are at the source."""
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise missing_extra("safetensors") from error
    tensors, _ = load_encoder_tensors(source, configuration)
    for name, rows, tensor in checkpoint_tensors(configuration, network):
        tensors[name] = tensors[name].copy()
        tensors[name][rows] = tensor
    save_file(tensors, target / SINGLE, {"format": "pt"})


def _change(path: Path, **values: Any) -> None:
    """Those of the values that the file has already."""
    config = read_json(path, dict)
    _write(path, config | {key: value for key, value in values.items() if key in config})


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
