# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tiny_models.npz: what transformers makes of the models of tiny_models.py.

    PYTHONPATH=tests python tests/support/make_golden.py        (needs torch and transformers)

For every family it holds the token embeddings of `tiny_models.SENTENCES`, packed, in float32.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from support.tiny_models import FAMILIES, SENTENCES, build
from tokenizers import Tokenizer
from transformers import AutoModel


def token_embeddings(directory: Path) -> NDArray[np.float32]:
    """(tokens, d_model) of all the sentences, each run alone."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        ids = [torch.tensor([tokenizer.encode(sentence).ids]) for sentence in SENTENCES]
        return np.concatenate([model(each).last_hidden_state[0].numpy() for each in ids])


def main() -> None:
    golden = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            golden[family] = token_embeddings(build(Path(directory), family))
    path = Path(__file__).parents[1] / "data" / "tiny_models.npz"
    np.savez_compressed(path, **golden)
    sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
