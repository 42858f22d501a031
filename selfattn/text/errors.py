# SPDX-License-Identifier: Apache-2.0
"""What can go wrong when a pretrained model is loaded. Each class is also a builtin one."""

from __future__ import annotations


class ModelNotFoundError(FileNotFoundError):
    """The model, or a file that it needs, is not there."""


class UnsupportedArchitectureError(ValueError):
    """The model asks for something that is not built: an architecture, a module, an activation."""


class WeightsMismatchError(ValueError):
    """The tensors in the weights' file are not those that the configuration describes."""


def missing_extra(package: str) -> ImportError:
    """The error for an optional package that is not installed."""
    return ImportError(f"text models need the package {package!r}: pip install 'selfattn[text]'")
