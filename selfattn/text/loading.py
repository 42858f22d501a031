# SPDX-License-Identifier: Apache-2.0
"""A model's directory, read: what a sentence encoder and every task head are built from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from selfattn.text.checkpoint import load_encoder_tensors
from selfattn.text.configuration import Configuration, read_configuration
from selfattn.text.locate import locate
from selfattn.text.mapped import MappedFile
from selfattn.text.network import Network, build_network
from selfattn.text.sentence_pooling import check_modules, read_modules
from selfattn.text.tokenizer import load_tokenizer, read_text_options

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from selfattn._checks import Precision


class ModelDescription(NamedTuple):
    """All of a model but its weights; `load` reads those, when the small files have turned out to agree."""

    name: str  # as it was asked for
    directory: Path
    modules: list[dict[str, str]]  # of modules.json, the encoder first
    configuration: Configuration
    tokenizer: Tokenizer
    max_seq_length: int

    def load(self, precision: Precision | None = None) -> tuple[Network, list[MappedFile]]:
        """The encoder, ready to run, and the files that hold its matrices as they were published."""
        tensors, files = load_encoder_tensors(
            _encoder_folder(self.directory, self.modules), self.configuration
        )
        network = build_network(self.configuration, tensors, precision)
        _ = network.encoder._packed  # all that calls need of the matrices
        for file in files:
            file.give_back()
        return network, files


def describe_model(
    name_or_directory: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> ModelDescription:
    """What `TextEncoder.from_pretrained` says of its arguments and its errors."""
    directory = locate(
        name_or_directory,
        revision=revision,
        cache_folder=cache_folder,
        token=token,
        local_files_only=local_files_only,
    ).absolute()
    modules = read_modules(directory)
    check_modules(modules, directory)
    folder = _encoder_folder(directory, modules)
    configuration = read_configuration(folder / "config.json")
    length, lowercase = read_text_options(folder, configuration.max_length)
    tokenizer = load_tokenizer(folder, configuration.vocab_size, lowercase=lowercase)
    return ModelDescription(
        os.fspath(name_or_directory), directory, modules, configuration, tokenizer, length
    )


def _encoder_folder(directory: Path, modules: list[dict[str, str]]) -> Path:
    return directory / modules[0]["path"]  # in old models a folder of its own
