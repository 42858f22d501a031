"""Fixtures every test file shares."""

import signal
from collections.abc import Iterator

import numpy as np
import pytest

import selfattn
from selfattn import _kernels

# A shell starts jobs in the background with SIGINT ignored, and children inherit that: no Ctrl-C to test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20170612)


@pytest.fixture(params=selfattn.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set that this machine has."""
    before = selfattn.active_isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)
