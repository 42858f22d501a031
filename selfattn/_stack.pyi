"""The compiled layer loop; selfattn.layers.Encoder is its public face."""

from typing import Any

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

class PackedEncoder:
    num_layers: int
    d_model: int
    def __init__(self, layers: list[dict[str, Any]], bfloat16: bool = False) -> None: ...
    def run(
        self, x: Array, cu_seqlens: Array, num_threads: int, first: int = 0, last: int | None = None
    ) -> Array: ...
