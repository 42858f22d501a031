# SPDX-License-Identifier: Apache-2.0
"""A progress bar. The loop itself is yours: it is short, and what differs between two trainings is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from selfattn._checks import as_integer


class Report(Protocol):
    """One step is done; the numbers (loss=0.31, lr=2e-5) are shown beside the bar."""

    def __call__(self, **numbers: float) -> None: ...


@contextmanager
def progress(total: int, *, first: int = 0, show: bool | None = None) -> Iterator[Report]:
    """A bar on stderr for the steps first ... total - 1; gives the function to call after each of them.

    show: True, False, or None: where stderr is a terminal. It is drawn by tqdm, which is imported here.
    """
    total, first = as_integer("total", total), as_integer("first", first)
    if show is False:
        yield lambda **_: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install 'selfattn[train]'") from error
    with tqdm(total=total, initial=first, unit="step", disable=None if show is None else False) as bar:

        def report(**numbers: float) -> None:
            bar.set_postfix(numbers, refresh=False)
            bar.update()

        yield report
