# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a model, with our own truncation and never any padding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfattn.text.errors import missing_extra
from selfattn.text.files import read_optional_json, require_file

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# sentence-transformers' file beside the encoder's configuration; the others are from its first versions
SENTENCE_CONFIGS = [
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
]
UNBOUNDED = 1 << 24  # transformers writes 10^30 as model_max_length where there is no limit
PARALLEL_TEXTS = 16  # fewer texts are tokenized on this thread, without waking the tokenizer's own pool


def load_tokenizer(directory: Path, vocab_size: int, *, lowercase: bool) -> Tokenizer:
    """tokenizer.json, without the padding and truncation that may be baked into it.

    lowercase puts a lower-casing step first (do_lower_case in sentence_bert_config.json).
    Raises ValueError for a damaged file or one that uses tokens beyond the model's `vocab_size`.
    """
    try:
        from tokenizers import Tokenizer, normalizers
    except ImportError as error:
        raise missing_extra("tokenizers") from error
    path = directory / "tokenizer.json"
    remedy = "a model with only a vocabulary gets one from transformers.AutoTokenizer's save_pretrained"
    text = require_file(path, remedy).read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(text)
        tokenizer.encode("")  # some contradictions only show here
    except BaseException as error:  # the library raises plain Exception, and a panic, which isn't one
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{path} ({len(text)} bytes) is not a tokenizer: {error}: copy or download the model again"
        ) from error
    highest = _highest_token(tokenizer)
    if highest >= vocab_size:
        raise ValueError(
            f"{path} uses token number {highest}, but config.json has only vocab_size={vocab_size}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if lowercase:
        steps = [normalizers.Lowercase()] + ([tokenizer.normalizer] if tokenizer.normalizer else [])
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _highest_token(tokenizer: Tokenizer) -> int:
    size = tokenizer.get_vocab_size()
    if all(tokenizer.id_to_token(number) is not None for number in range(size)):
        return size - 1  # nearly always, and found without a dict of all tokens, which takes megabytes
    return max(tokenizer.get_vocab().values())


def text_options_path(directory: Path) -> Path:
    """Where max_seq_length stands, or would."""
    paths = [directory / name for name in SENTENCE_CONFIGS]
    return next((path for path in paths if path.exists()), paths[0])


def read_text_options(directory: Path, limit: int) -> tuple[int, bool]:
    """(max_seq_length, whether texts are lower-cased) of the encoder in `directory`."""
    path = text_options_path(directory)
    config = read_optional_json(path)
    return _max_length(path, config.get("max_seq_length"), limit), bool(config.get("do_lower_case"))


def _max_length(path: Path, length: Any, limit: int) -> int:
    """max_seq_length as sentence-transformers has it, else the tokenizer's, at most the model's limit.

    The truncation inside tokenizer.json does not count: all-MiniLM-L6-v2 has 128 there and means 256.
    """
    if length is None:
        path = path.with_name("tokenizer_config.json")
        length = read_optional_json(path).get("model_max_length")
        length = (
            limit if length is None or (isinstance(length, int | float) and length > UNBOUNDED) else length
        )
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"{path}: the maximum sequence length {length!r} is not a positive integer")
    return min(length, limit)


def encode_texts(tokenizer: Tokenizer, texts: list[str], *, num_threads: int) -> list[Encoding]:
    """One Encoding per text. Many texts wake the tokenizer's own threads, if more than one is allowed."""
    if num_threads == 1 or len(texts) < PARALLEL_TEXTS:
        return [tokenizer.encode(text) for text in texts]
    batched = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)  # without offsets, since 0.20
    return batched(texts)
