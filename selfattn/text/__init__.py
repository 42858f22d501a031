"""Pretrained text encoders of the BERT family on NumPy arrays."""

from selfattn.text.errors import ModelNotFoundError, UnsupportedArchitectureError, WeightsMismatchError
from selfattn.text.network import Network
from selfattn.text.text_encoder import TextEncoder

__all__ = [
    "ModelNotFoundError",
    "Network",
    "TextEncoder",
    "UnsupportedArchitectureError",
    "WeightsMismatchError",
]
