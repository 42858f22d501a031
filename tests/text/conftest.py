# SPDX-License-Identifier: Apache-2.0
"""A tiny model's directory, for every test here to damage."""

from pathlib import Path

import pytest
from support.tiny_models import build


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return build(tmp_path)
