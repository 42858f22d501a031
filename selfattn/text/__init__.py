"""Pretrained text encoders of the BERT family on NumPy arrays."""

from selfattn.text.errors import ModelNotFoundError, UnsupportedArchitectureError, WeightsMismatchError
from selfattn.text.text_encoder import TextEncoder

__all__ = ["ModelNotFoundError", "TextEncoder", "UnsupportedArchitectureError", "WeightsMismatchError"]
