# SPDX-License-Identifier: Apache-2.0
"""TextEncoder: a pretrained sentence encoder, with the verbs and the names of sentence-transformers."""

from __future__ import annotations

import copy
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfattn.runtime import resolve_num_threads
from selfattn.text.arguments import as_texts, positive_sizes
from selfattn.text.batching import Batch, make_batches
from selfattn.text.configuration import Configuration
from selfattn.text.loading import describe_model
from selfattn.text.mapped import MappedFile
from selfattn.text.network import Network, in_memory
from selfattn.text.pooling import Floats, normalize
from selfattn.text.progress import progress
from selfattn.text.prompts import SentenceConfiguration, read_sentence_configuration
from selfattn.text.sentence_pooling import SentencePooling, load_sentence_pooling
from selfattn.text.similarity import similarity, similarity_pairwise
from selfattn.text.tokenizer import encode_texts

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from selfattn._checks import Precision
    from selfattn.layers.base import Weights
    from selfattn.view import AttentionMap

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings", None)
MAX_TOKENS_PER_BATCH = 2048
WINDOW = 8192  # sentences sorted by length at a time: bounds memory, whatever the length of the list
SLICE = 128  # sentences tokenized at a time: Ctrl-C waits for no more
ELSEWHERE = ("convert_to_tensor", "device")  # what sentence-transformers takes, and only PyTorch can do


class TextEncoder:
    """A pretrained text encoder: sentences in, one float32 embedding each out.

    Nothing is padded: sentences lie side by side, and only real tokens are computed. The same text gives the
    same bits alone, in any batch, in any order and on any number of threads. Safe to call from several
    threads at once, as long as none of them sets `max_seq_length`.

    Build one with `TextEncoder.from_pretrained`.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        configuration: Configuration,
        network: Network,
        tokenizer: Tokenizer,
        pooling: SentencePooling,
        settings: SentenceConfiguration,
        max_seq_length: int,
        files: Sequence[MappedFile] = (),
    ) -> None:
        self._name = name
        self._directory = directory
        self._configuration = configuration
        self._network = network
        self._files = files  # where the matrices of the network's layers lie, as long as nobody asks for them
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._settings = settings
        self._truncated = Counter[int]()  # each thread adds to its own number, so that none is lost
        self.max_seq_length = max_seq_length

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        precision: Precision | None = None,
    ) -> TextEncoder:
        """Load a model: a directory, an installed package that carries one in `model/`, or a hub name.

        They are tried in that order. A directory and a package never touch the network; nor does a hub name
        whose files (modules.json among them) are in the cache, or anything under HF_HUB_OFFLINE=1 or
        local_files_only. revision (of a hub name only), cache_folder (by default SENTENCE_TRANSFORMERS_HOME,
        if set) and token are passed on to huggingface_hub. A name without an owner is looked for under
        "sentence-transformers/".

        Read are config.json, model.safetensors (or its shards), tokenizer.json, and sentence-transformers'
        modules.json, pooling, Dense and Normalize modules, max_seq_length and prompts. Weights in float16 or
        bfloat16 are widened to float32. Pickled weights are never opened.

        precision="bfloat16" rounds the factors of the encoder's products to bfloat16, as `Encoder` does: 1.5
        to 2 times as fast where the processor multiplies those faster. Embeddings are float32 as before.

        Raises ModelNotFoundError (a FileNotFoundError) for a missing directory or file,
        UnsupportedArchitectureError and WeightsMismatchError (ValueErrors) for a model that is not supported
        or contradicts itself, and ValueError for a damaged file or NaN weights. Errors of huggingface_hub,
        such as RepositoryNotFoundError, pass through.
        """
        model = describe_model(
            name_or_directory,
            revision=revision,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
        )
        configuration = model.configuration
        settings = read_sentence_configuration(model.directory)
        pooling = load_sentence_pooling(model.modules, model.directory, configuration.hidden_size)
        network, files = model.load(precision)
        parts = model.name, model.directory, configuration, network, model.tokenizer
        return cls(*parts, pooling, settings, model.max_seq_length, files)

    def __repr__(self) -> str:
        layers, d_model = self._configuration.num_layers, self._configuration.hidden_size
        kind = self._configuration.model_type
        return f"TextEncoder({self._name!r}, {kind}, {layers} layers, {d_model}d, {self._pooling})"

    @property
    def network(self) -> Network:
        """What is learned: from token numbers to token embeddings, with `forward`, `backward`, `weights`.

        `encode` needs its matrices in packed form only. They are read from the model's file when the network
        is first asked for; ValueError when that file was written to in place since the model was loaded.
        """
        if self._files:
            for file in self._files:
                file.check()
            self._network, self._files = in_memory(self._network), ()
        return self._network

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_network": self.network, "_files": ()}

    def replace(self, weights: Weights) -> TextEncoder:
        """A model with these weights, in the structure of `network.weights()`, and all else as here.

        Raises TypeError or ValueError as Layer.replace does.
        """
        parts = self._name, self._directory, self._configuration, self._network.replace(weights)
        tokenizer = copy.deepcopy(self._tokenizer)  # it holds the max_seq_length
        return TextEncoder(*parts, tokenizer, self._pooling, self._settings, self.max_seq_length)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes a new directory that `from_pretrained` reads: the same embeddings, to the last bit.

        It holds the files of the model that this one was loaded from, which must still be there, with the
        weights, float32, and max_seq_length of this one. (What the encoder does not use, a task head, is left
        out.) It appears at the very end, whole. Raises FileExistsError for a directory that is there and not
        empty, OSError where it cannot be written, and what `from_pretrained` does for damaged files.
        """
        from selfattn.text.saving import save_model  # here: only those who save need it

        target = Path(directory).expanduser().absolute()
        save_model(self._directory, target, self._configuration, self.network, self._max_seq_length)

    @property
    def tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer`, without padding, truncating to max_seq_length."""
        return self._tokenizer

    @property
    def truncated(self) -> int:
        """How many texts were cut off at max_seq_length so far."""
        return sum(list(self._truncated.values()))

    @property
    def embedding_dim(self) -> int:
        """How many numbers an embedding has."""
        return min(
            self._pooling.embedding_dim,
            self._settings.truncate_dim or self._pooling.embedding_dim,
        )

    def get_sentence_embedding_dimension(self) -> int:
        """`embedding_dim`, under sentence-transformers' name."""
        return self.embedding_dim

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name."""
        return dict(self._settings.prompts.prompts)

    @property
    def similarity_fn_name(self) -> str:
        """What `similarity` computes: "cosine", "dot", "euclidean" or "manhattan"."""
        return self._settings.similarity_fn_name

    @property
    def max_seq_length(self) -> int:
        """The most tokens of a text, [CLS] and [SEP] included, that are read; the rest is cut off."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        lowest, highest = (
            self._tokenizer.num_special_tokens_to_add(False) + 1,
            len(self._network.position_table),
        )
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"max_seq_length is a {type(value).__name__}, expected an int")
        if not lowest <= value <= highest:
            raise ValueError(
                f"max_seq_length={value} is not between {lowest} and the {highest} positions of this model"
            )
        self._tokenizer.enable_truncation(value)
        self._max_seq_length = value

    def encode(
        self,
        inputs: str | Iterable[str] | None = None,
        *,
        sentences: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        num_threads: int | None = None,
        max_tokens_per_batch: int = MAX_TOKENS_PER_BATCH,
        **unknown: Any,
    ) -> Any:
        """Embed one text or many.

        inputs: a str gives one embedding (embedding_dim,); an iterable of n strs gives (n, embedding_dim)
            float32, for n = 0 an array of shape (0, embedding_dim). The empty text is legal: it is
            [CLS][SEP].
        sentences: another name of `inputs`, which sentence-transformers used before version 5.
        prompt, prompt_name: a text put before every input, or the name of one of the model's `prompts`.
        batch_size, max_tokens_per_batch: how many sentences and tokens go through the network at once,
            whichever is reached first. They bound memory and change no bit of the result.
        show_progress_bar: on stderr; None shows one if stderr is a terminal and there is more than one batch.
        output_value: "sentence_embedding"; "token_embeddings" for a list of arrays (n_tokens, d_model); None
            for a list of dicts with input_ids, token_embeddings and sentence_embedding. Of a single str, the
            one array or dict.
        convert_to_numpy: False gives a list of arrays (embedding_dim,) instead of one array.
        normalize_embeddings: scale to length 1, after truncation.
        truncate_dim: keep only the first so many numbers.
        num_threads: for this call, instead of the library's setting.

        A text longer than max_seq_length is cut off there without a word, as in sentence-transformers;
        `truncated` counts them.

        Raises TypeError for an input that isn't a str (naming its index) or an unknown keyword, ValueError
        for an unknown prompt name or output value, or a size out of range.
        """
        if unknown:
            raise TypeError(_unknown_arguments(sorted(unknown)))
        if output_value not in OUTPUT_VALUES:
            raise ValueError(
                f"output_value={output_value!r} is not one of {', '.join(map(repr, OUTPUT_VALUES))}"
            )
        if sentences is not None:
            if inputs is not None:
                raise TypeError("inputs and sentences are two names of one argument: give one of them")
            inputs = sentences
        texts = as_texts(inputs)
        prefix = self._settings.prompts.choose(prompt, prompt_name)
        dim = self._output_dim(truncate_dim)
        positive_sizes(batch_size=batch_size, max_tokens_per_batch=max_tokens_per_batch)
        batches = self._run(texts, prefix, batch_size, max_tokens_per_batch, show_progress_bar, num_threads)
        skip = self._prompt_length(prefix)

        def embed(batch: Batch, tokens: Floats) -> Floats:
            embeddings = self._pooling(tokens, batch.cu_seqlens, prompt_length=skip)[:, :dim]
            return normalize(embeddings) if normalize_embeddings else embeddings

        result: Any
        if output_value == "sentence_embedding":
            table = np.empty((len(texts), dim), dtype=np.float32)
            for batch, tokens in batches:
                table[batch.rows] = embed(batch, tokens)
            result = table if convert_to_numpy else list(table)
        else:
            features = [dict[str, NDArray[Any]]() for _ in texts]
            for batch, tokens in batches:
                _scatter(features, batch, tokens, embed(batch, tokens))
            result = features if output_value is None else [each["token_embeddings"] for each in features]
        return result[0] if isinstance(inputs, str) else result

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Floats:
        """Every embedding of a (n, dim) with every one of b (m, dim) -> (n, m), by `similarity_fn_name`."""
        return similarity(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> Floats:
        """Row i of a (n, dim) with row i of b (n, dim) -> (n,), by `similarity_fn_name`."""
        return similarity_pairwise(a, b, self.similarity_fn_name)

    def attention_map(self, sentence: str, *, num_threads: int | None = None) -> AttentionMap:
        """Which token attends to which, in every layer and head. Cut off at max_seq_length."""
        from selfattn.view import AttentionMap

        if not isinstance(sentence, str):
            raise TypeError(f"sentence is a {type(sentence).__name__}, expected a str")
        encoding = self._tokenize(as_texts(sentence), 1)[0]
        weights = self.network.attention_weights(
            np.array(encoding.ids, dtype=np.int64), num_threads=num_threads
        )
        return AttentionMap(encoding.tokens, weights, words=encoding.word_ids, title=self._name)

    def _run(
        self,
        texts: list[str],
        prefix: str,
        batch_size: int,
        max_tokens: int,
        show_progress_bar: bool | None,
        num_threads: int | None,
    ) -> Iterator[tuple[Batch, Floats]]:
        """Batches of the texts, each with its packed token embeddings (tokens, d_model)."""
        threads = resolve_num_threads(num_threads)
        if show_progress_bar is None:
            show_progress_bar = len(texts) > batch_size and sys.stderr is not None and sys.stderr.isatty()
        with progress(len(texts), show_progress_bar) as advance:
            for start in range(0, len(texts), WINDOW):
                window = [prefix + text for text in texts[start : start + WINDOW]]
                sentences: list[list[int]] = []
                for i in range(0, len(window), SLICE):
                    sentences += [one.ids for one in self._tokenize(window[i : i + SLICE], threads)]
                    advance(0)  # the bar's clock
                for batch in make_batches(sentences, start, max_tokens=max_tokens, max_sentences=batch_size):
                    yield batch, self._network(batch.ids, batch.cu_seqlens, num_threads=threads)
                    advance(len(batch.rows))

    def _tokenize(self, texts: list[str], num_threads: int) -> list[Encoding]:
        encodings = encode_texts(self._tokenizer, texts, num_threads=num_threads)
        full = (encoding for encoding in encodings if len(encoding) == self._max_seq_length)
        self._truncated[get_ident()] += sum(bool(encoding.overflowing) for encoding in full)
        return encodings

    def _prompt_length(self, prefix: str) -> int:
        """How many tokens a prompt has, as pooling counts them: without a trailing [SEP]."""
        if self._pooling.include_prompt or not prefix:
            return 0
        special = self._tokenizer.encode(prefix).special_tokens_mask
        return len(special) - special[-1]

    def _output_dim(self, truncate_dim: int | None) -> int:
        if truncate_dim is None:
            return self.embedding_dim
        positive_sizes(truncate_dim=truncate_dim)
        if truncate_dim > self._pooling.embedding_dim:
            raise ValueError(
                f"truncate_dim={truncate_dim} is more than this model's {self._pooling.embedding_dim}"
            )
        return truncate_dim


def _scatter(
    features: list[dict[str, NDArray[Any]]], batch: Batch, tokens: Floats, embeddings: Floats
) -> None:
    """Put a batch's results into the dicts of the sentences that they belong to."""
    for i, row in enumerate(batch.rows):
        part = slice(batch.cu_seqlens[i], batch.cu_seqlens[i + 1])
        features[row] = {
            "input_ids": batch.ids[part],
            "token_embeddings": tokens[part],
            "sentence_embedding": embeddings[i],
        }


def _unknown_arguments(names: list[str]) -> str:
    if foreign := ", ".join(name for name in names if name in ELSEWHERE):
        return f"encode() has no argument {foreign}; drop it: NumPy arrays are returned, on the CPU"
    return f"encode() has no argument {', '.join(names)}; it takes {', '.join(_ENCODE_NAMES)}"


_ENCODE_NAMES = [name for name in signature(TextEncoder.encode).parameters if name not in ("self", "unknown")]
