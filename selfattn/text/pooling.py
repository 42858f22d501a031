# SPDX-License-Identifier: Apache-2.0
"""From the token embeddings of packed sentences to one embedding each.

Every sum runs over the tokens of one sentence in order, in float64, and is rounded to float32 once: the
result depends on that sentence alone, whatever its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfattn.text.files import read_json

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]

# sentence-transformers' modes, in the order of concatenation, with their keys in older configurations
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def pool(tokens: Floats, cu_seqlens: Offsets, modes: tuple[str, ...], *, skip: int = 0) -> Floats:
    """Sentence embeddings (batch, len(modes) * d_model) of packed token embeddings (total, d_model), float32.

    cu_seqlens: (batch + 1,) where each sentence starts, and the end of the last one.
    skip: how many leading tokens of each sentence are left out (a prompt's), though never the last token.
    A sentence without tokens gets zeros. Raises ValueError for a mode that is none of MODES.
    """
    require_modes(modes)
    batch, d_model = len(cu_seqlens) - 1, tokens.shape[1]
    result = np.zeros((batch, len(modes), d_model), dtype=np.float32)
    for i in range(batch):
        sentence = tokens[cu_seqlens[i] : cu_seqlens[i + 1]]
        if len(sentence):
            result[i] = [_pool(mode, sentence, min(skip, len(sentence) - 1)) for mode in modes]
    return result.reshape(batch, -1)


def _pool(mode: str, sentence: Floats, skip: int) -> Any:
    """One mode over the rows skip.. of one sentence (length, d_model) -> (d_model,), float32 or float64."""
    rows = sentence[skip:]
    if mode == "cls":
        return rows[0]
    if mode == "max":
        return rows.max(axis=0)
    if mode == "mean":
        return rows.sum(axis=0, dtype=np.float64) / len(rows)
    if mode == "mean_sqrt_len_tokens":
        return rows.sum(axis=0, dtype=np.float64) / np.sqrt(len(rows))
    if mode == "lasttoken":
        return rows[-1]
    weights = np.arange(
        skip + 1.0, len(sentence) + 1
    )  # weightedmean: the k-th token, counted from 1, weighs k
    return (rows * weights[:, None]).sum(axis=0) / weights.sum()


def normalize(embeddings: Floats) -> Floats:
    """Each row divided by its Euclidean length, in float64 and rounded once. A zero row stays zero."""
    rows = embeddings.astype(np.float64)
    length = np.sqrt(np.add.reduce(rows * rows, axis=1, keepdims=True))
    return (rows / np.where(length == 0, 1, length)).astype(np.float32)


def read_pooling(path: Path, dim: int) -> tuple[tuple[str, ...], bool]:
    """(modes, include_prompt) of a Pooling module's config.json, in the current spelling or the older one."""
    config = read_json(path, dict)
    for key in ("embedding_dimension", "word_embedding_dimension"):
        if config.get(key, dim) != dim:
            raise ValueError(f"{path}: {key}={config[key]!r} does not match the encoder's {dim}")
    modes = config.get("pooling_mode") or _older_modes(config)
    modes = tuple(modes) if isinstance(modes, list | tuple) else (modes,)
    require_modes(modes, f"{path}: ")
    return modes, bool(config.get("include_prompt", True))


def require_modes(modes: tuple[Any, ...], where: str = "") -> None:
    """ValueError unless all are in MODES; `where` is what its message begins with."""
    for mode in modes:
        if not isinstance(mode, str) or mode not in MODES:
            raise ValueError(f"{where}the pooling mode {mode!r} is not one of {', '.join(MODES)}")


def _older_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(mode for mode, key in MODES.items() if config.get(key)) or ("mean",)
