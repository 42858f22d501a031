# SPDX-License-Identifier: Apache-2.0
"""Small JSON files read with care: every failure is one error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfattn.text.errors import ModelNotFoundError

MAX_JSON_BYTES = 64 << 20  # the largest index of a sharded model is a few megabytes


def require_file(path: Path, remedy: str) -> Path:
    """`path` if it is a regular file (or a link to one), else ModelNotFoundError or ValueError."""
    if path.is_file():
        return path
    if path.exists():
        raise ValueError(f"{path} is not a regular file: {remedy}")
    raise ModelNotFoundError(f"{path} does not exist: {remedy}")


def read_json(path: Path, expected: type, remedy: str = "copy or download the model again") -> Any:
    """The JSON value in `path`, which must be an `expected` (dict or list)."""
    size = require_file(path, remedy).stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} holds {size} bytes, more than the {MAX_JSON_BYTES} that such a file may: {remedy}"
        )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8 (both ValueError), or too deep
        raise ValueError(f"{path} ({size} bytes) is not valid JSON: {error}: {remedy}") from error
    if not isinstance(value, expected):
        raise ValueError(
            f"{path} holds a JSON {type(value).__name__}, expected a {expected.__name__}: {remedy}"
        )
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one when there is no such file."""
    return read_json(path, dict) if path.exists() else {}


def get_int(config: dict[str, Any], key: str, path: Path, *, minimum: int = 1, maximum: int = 1 << 31) -> int:
    """The integer `config[key]` of the file `path`, checked to lie in minimum..maximum."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{path}: {key}={value!r} is not an integer")
    if not minimum <= value <= maximum:
        raise ValueError(f"{path}: {key}={value} is not between {minimum} and {maximum}")
    return value
