# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries, read where they lie."""

from typing import Any

import numpy as np

def from_dlpack(x: Any) -> np.ndarray[tuple[int, ...], np.dtype[Any]]: ...
