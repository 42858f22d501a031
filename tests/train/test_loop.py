# SPDX-License-Identifier: Apache-2.0
"""The progress bar: what it counts and shows, and that it is silent where nobody looks."""

import builtins
import re

import pytest

from selfattn.train import progress


def test_it_counts_the_steps_and_shows_the_numbers(capsys):
    with progress(5, first=2, show=True) as report:
        for step in range(2, 5):
            report(loss=step / 8, lr=1e-3)
    last = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"100%.* 5/5 .*step.*loss=0\.5, lr=0\.001", last)


@pytest.mark.parametrize("show", [False, None])
def test_it_is_silent_where_nobody_looks(show, capsys):
    with progress(2, show=show) as report:
        report(loss=1.0)
    assert capsys.readouterr().err == ""


def test_an_error_in_the_loop_gets_out():
    with pytest.raises(ZeroDivisionError), progress(2, show=False):
        raise ZeroDivisionError


def test_without_tqdm_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'selfattn\[train\]'"), progress(2, show=True):
        pass
