# SPDX-License-Identifier: Apache-2.0
"""Bad input: a case is (the error, what is spoiled, what its message says)."""

import pytest


def assert_one_clear_error(function, good, case):
    """The call with what is spoiled in place of what is good: one error that says all that it must."""
    error, spoiled, parts = case
    with pytest.raises(error) as caught:
        function(**{**good, **spoiled})
    message = str(caught.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f"{message!r} does not say {missing}"


def without_value(cases):
    """The names of the cases that calls without a value share."""
    return [
        name
        for name, (_, spoiled, _) in cases.items()
        if not {"value", "out"} & spoiled.keys() and name not in ("kv_len differs", "kv heads differ")
    ]
