# SPDX-License-Identifier: Apache-2.0
"""What tells one family of models from another: names, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family of the encoders of "BERT" (Devlin et al., 2018) names its configuration and its tensors.

    All of them have learned positions, post-norm layers, and one attention and one feed-forward block in
    each. Every mapping goes from our names to the family's. A setting that is not in `keys` the family does
    not have: without token_types it has no such table; with pad_token_id its positions start after it.
    """

    model_types: tuple[str, ...]  # in config.json
    keys: Mapping[str, str]  # the settings in config.json
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of those that config.json may leave out
    prefixes: tuple[str, ...]  # a checkpoint with a task head carries the encoder under the first of these
    embeddings: Mapping[str, str]  # tensors before the layers, without ".weight" and ".bias"
    layers: str  # what precedes the number of a layer
    layer: Mapping[str, str]  # tensors of a layer, without what precedes them and ".weight" and ".bias"
    encoder: tuple[str, ...]  # what all names of the encoder's own tensors begin with
