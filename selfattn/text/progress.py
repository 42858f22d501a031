# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr, by tqdm, which is imported when one is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from selfattn.text.errors import missing_extra


@contextmanager
def progress(total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Gives the function to call with the number of sentences just done; it does nothing unless `show`."""
    if not show:
        yield lambda _: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise missing_extra("tqdm") from error
    with tqdm(total=total, unit="sentence") as bar:
        yield bar.update
