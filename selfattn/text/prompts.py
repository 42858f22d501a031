# SPDX-License-Identifier: Apache-2.0
"""config_sentence_transformers.json: a model's prompts, and how its embeddings compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfattn.text.files import read_optional_json
from selfattn.text.similarity import check_similarity


@dataclass(frozen=True)
class Prompts:
    """Texts put before every input: by name, by default, or none."""

    prompts: dict[str, str]
    default_name: str | None = None

    def choose(self, prompt: str | None, prompt_name: str | None) -> str:
        """A prompt given as text wins (also an empty one), then a name, then the default, then nothing."""
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TypeError(f"prompt is a {type(prompt).__name__}, expected a str")
            return prompt
        name = self.default_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"prompt_name={name!r} is not one of this model's {sorted(self.prompts)}")
        return self.prompts[name]


@dataclass(frozen=True)
class SentenceConfiguration:
    """What config_sentence_transformers.json says; every part has a default."""

    prompts: Prompts
    similarity_fn_name: str
    truncate_dim: int | None


def read_sentence_configuration(directory: Path) -> SentenceConfiguration:
    """Read and check the file; without it, no prompts and cosine similarity."""
    path = directory / "config_sentence_transformers.json"
    config = read_optional_json(path)
    prompts: Any = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(f"{path}: prompts is not an object whose values are strings")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ValueError(
            f"{path}: default_prompt_name={default!r} is not one of its prompts {sorted(prompts)}"
        )
    dim = config.get("truncate_dim")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
        raise ValueError(f"{path}: truncate_dim={dim!r} is not a positive integer")
    similarity = check_similarity(config.get("similarity_fn_name") or "cosine", str(path))
    return SentenceConfiguration(Prompts(prompts, default), similarity, dim)
