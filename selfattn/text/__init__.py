# SPDX-License-Identifier: Apache-2.0
"""Pretrained text encoders of the BERT family on NumPy arrays.

text_encoder.py      TextEncoder: from_pretrained, encode, similarity
network.py           Network: token numbers in, token embeddings out
loading.py           a model's directory, read: what the encoder and every task head are built from
families/            what each family of models calls its settings and tensors: a file of data each
configuration.py     config.json, read by those names
checkpoint.py        the tensors, checked; mapped.py leaves them where they lie in their files
tokenizer.py         the tokenizer and its truncation; batching.py groups sentences by their tokens
sentence_pooling.py  what follows the encoder, up to the embedding; pooling*.py has the arithmetic
prompts.py           the prompts of a model
similarity.py        the four similarities of embeddings
locate.py            from a name to a directory; saving.py writes one; files.py reads small JSON files
arguments.py, errors.py, progress.py
"""

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
