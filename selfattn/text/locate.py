# SPDX-License-Identifier: Apache-2.0
"""From what the user calls a model to the directory that holds its files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from selfattn.text.checkpoint import has_weights
from selfattn.text.errors import ModelNotFoundError, missing_extra
from selfattn.text.sentence_pooling import read_modules

# Only what a text encoder reads, never pickled weights or exports to other runtimes.
DOWNLOADED = ["*.json", "*.txt", "*.safetensors"]
NOT_DOWNLOADED = ["onnx/*", "openvino/*", "coreml/*"]
DEFAULT_OWNER = "sentence-transformers"  # of a name without one


def locate(
    name_or_directory: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The model's directory: one that exists, else an installed carrier package's, else from the hub."""
    name = os.fspath(name_or_directory)
    if not name:
        raise ValueError("name_or_directory is empty: give a model's directory, or a hub name")
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _refuse_revision(directory, revision)
    if directory.exists():
        raise ValueError(f"{name} is a file: give the directory that holds config.json and model.safetensors")
    if _looks_like_path(name_or_directory):
        raise ModelNotFoundError(
            f"the directory {name!r} does not exist: give a model's directory, or a hub name such as "
            "'sentence-transformers/all-MiniLM-L6-v2'"
        )
    if carried := _carrier_package(name):
        return _refuse_revision(carried, revision)
    return _hub_snapshot(name, revision, cache_folder, token, local_files_only)


def _refuse_revision(directory: Path, revision: str | None) -> Path:
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} would be ignored, {directory} is what it is: drop it, or give a hub name"
        )
    return directory


def _looks_like_path(name: str | os.PathLike[str]) -> bool:
    """True for what can't be a hub name: those are NAME or OWNER/NAME, and start with a letter or a digit."""
    text = os.fspath(name)
    return isinstance(name, os.PathLike) or not text[:1].isalnum() or text.count("/") > 1 or "\\" in text


def _carrier_package(name: str) -> Path | None:
    """The directory `model/` of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    for location in (spec and spec.submodule_search_locations) or ():
        if (directory := Path(location) / "model").joinpath("config.json").is_file():
            return directory
    return None


def _hub_snapshot(
    name: str,
    revision: str | None,
    cache_folder: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> Path:
    try:
        from huggingface_hub import snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise missing_extra("huggingface_hub") from error
    cache = cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    cache_dir = Path(cache) if cache else None  # None: huggingface_hub's own
    repository = name if "/" in name else f"{DEFAULT_OWNER}/{name}"
    cached = try_to_load_from_cache(repository, "config.json", cache_dir=cache_dir, revision=revision)
    if isinstance(cached, str) and _is_complete(Path(cached).parent):
        return Path(cached).parent
    try:
        snapshot = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=DOWNLOADED,
            ignore_patterns=NOT_DOWNLOADED,
        )
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"{name!r} is neither a directory nor an installed package that carries a model, and "
            f"{repository!r} (revision {revision or 'main'}) is not in the Hugging Face cache: {error}"
        ) from error
    return Path(snapshot)


def _is_complete(snapshot: Path) -> bool:
    """True if a cached snapshot can be used without a look at the hub.

    Other libraries leave partial snapshots in the same cache: one without modules.json may only lack the
    pooling that its model was trained with, and an interrupted download may lack anything.
    """
    if not (snapshot / "modules.json").exists():
        return False
    folders = {module["type"]: snapshot / module["path"] for module in read_modules(snapshot)}
    folders.pop("Normalize", None)  # has no files
    transformer = folders.get("Transformer", snapshot)
    needed = [transformer / "tokenizer.json", *(folder / "config.json" for folder in folders.values())]
    return has_weights(transformer) and all(path.exists() for path in needed)
