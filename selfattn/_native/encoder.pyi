# SPDX-License-Identifier: Apache-2.0
"""The compiled layer loop; selfattn.layers.Encoder is its public face."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import disjoint_base

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

@disjoint_base
class PackedEncoder:
    def __init__(self, layers: list[Any], precision: str | None = None) -> None: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    def run(
        self,
        x: _Array,
        cu_seqlens: _Array,
        num_threads: int,
        first: int = 0,
        last: int | None = None,
        tables: Sequence[tuple[_Array, _Array]] = (),
    ) -> _Array: ...
