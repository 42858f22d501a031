# SPDX-License-Identifier: Apache-2.0
"""Checks of what callers pass to a TextEncoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np


def as_texts(inputs: str | Iterable[str] | None) -> list[str]:
    """The inputs as a list, every one of them a str that the tokenizer can take."""
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, bytes | Mapping) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs is a {type(inputs).__name__}, expected a str or an iterable of str")
    texts = list(inputs)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"inputs[{i}] is a {type(text).__name__}, expected a str")
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"inputs[{i}] is not valid Unicode: {error.reason} at character {error.start}"
            ) from None
    return texts


def positive_sizes(**sizes: int) -> None:
    """Raise TypeError or ValueError, naming it, for a size that isn't an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"{name} is a {type(size).__name__}, expected an int")
        if size < 1:
            raise ValueError(f"{name}={size} is less than 1")
