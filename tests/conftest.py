# SPDX-License-Identifier: Apache-2.0
"""Fixtures every test file shares, and how much hypothesis draws: HYPOTHESIS_PROFILE=night for long."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

import selfattn
from selfattn._native import runtime as _runtime

# A shell starts jobs in the background with SIGINT ignored, and children inherit that: no Ctrl-C to test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("test", max_examples=200, derandomize=True, deadline=None)
settings.register_profile("night", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20170612)


@pytest.fixture(params=selfattn.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set that this machine has."""
    before = selfattn.active_isa()
    _runtime.use_isa(request.param)
    yield request.param
    _runtime.use_isa(before)
