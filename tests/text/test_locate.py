# SPDX-License-Identifier: Apache-2.0
"""Where a model is looked for, and that the network is left alone when it is not needed."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from support.tiny_models import SENTENCES, build, shard

from selfattn.text import ModelNotFoundError, TextEncoder, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **keywords: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A Hugging Face cache that holds one repository, owner/tiny, at one commit; files are links to blobs."""
    repository = tmp_path / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / COMMIT
    build(tmp_path / "model")
    for i, path in enumerate(sorted((tmp_path / "model").rglob("*.*"))):
        blob, link = repository / "blobs" / str(i), snapshot / path.relative_to(tmp_path / "model")
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def snapshot_of(cache: Path) -> Path:
    return cache / "models--owner--tiny" / "snapshots" / COMMIT


@pytest.mark.usefixtures("no_network")
def test_a_directory_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextEncoder.from_pretrained(build(tmp_path))
    assert model.encode(SENTENCES).shape == (len(SENTENCES), 16)
    monkeypatch.chdir(tmp_path.parent)
    relative = TextEncoder.from_pretrained(tmp_path.name)
    np.testing.assert_array_equal(relative.encode(SENTENCES), model.encode(SENTENCES))


def test_a_directory_does_not_even_import_the_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from selfattn.text import TextEncoder; "
        f"TextEncoder.from_pretrained({str(build(tmp_path))!r}).encode('cat'); "
        "print(sorted({'huggingface_hub', 'torch', 'transformers', 'tqdm', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.usefixtures("no_network")
def test_a_carrier_package_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_tiny_model"
    build(package / "model")
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    model = TextEncoder.from_pretrained("carries_a_tiny_model")
    assert repr(model).startswith("TextEncoder('carries_a_tiny_model', bert, 2 layers, 16d")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_name_opens_no_socket(cache: Path, tmp_path: Path, revision: str | None) -> None:
    model = TextEncoder.from_pretrained("owner/tiny", revision=revision, cache_folder=cache)
    expected = TextEncoder.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(model.encode(SENTENCES), expected.encode(SENTENCES))


@pytest.mark.usefixtures("no_network")
def test_the_cache_of_sentence_transformers_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(cache))
    assert locate.locate("owner/tiny") == snapshot_of(cache)


@pytest.mark.usefixtures("no_network")
def test_offline_a_name_that_is_not_cached_is_an_error(cache: Path) -> None:
    for keywords in ({"revision": "v2"}, {"cache_folder": cache.parent / "other"}):
        with pytest.raises(ModelNotFoundError, match=r"'owner/tiny' .* is not in the Hugging Face cache"):
            TextEncoder.from_pretrained(
                "owner/tiny", local_files_only=True, **{"cache_folder": cache} | keywords
            )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/tiny", "TextEncoder('owner/tiny', bert"), ("owner/other", "not found: 'owner/other'")],
)
def test_the_offline_variable_is_obeyed(cache: Path, name: str, expected: str) -> None:
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE once, when it is imported."""
    code = (
        "import socket\n"
        "def refuse(*args, **keywords): raise SystemExit('a socket was opened')\n"
        "socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from selfattn.text import TextEncoder, ModelNotFoundError\n"
        f"try: print(TextEncoder.from_pretrained({name!r}))\n"
        "except ModelNotFoundError as error: print(f'not found: {error}')\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.stdout.startswith(expected), result.stderr


def link_shards(cache: Path, tmp_path: Path) -> list[Path]:
    """The weights of the cached snapshot in two shards, with their index."""
    shard(tmp_path / "model")
    (snapshot_of(cache) / "model.safetensors").unlink()
    links = []
    for path in sorted((tmp_path / "model").glob("model*")):
        links.append(snapshot_of(cache) / path.name)
        links[-1].symlink_to(path)
    return links


@pytest.mark.usefixtures("no_network")
def test_a_cached_model_in_shards_opens_no_socket(cache: Path, tmp_path: Path) -> None:
    assert len(link_shards(cache, tmp_path)) == 3
    model = TextEncoder.from_pretrained("owner/tiny", cache_folder=cache)
    assert model.encode("cat").shape == (16,)


def test_a_snapshot_that_lacks_a_shard_is_completed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = link_shards(cache, tmp_path)[0]
    blob = lost.readlink()
    lost.unlink()

    def download(repository: str, **keywords: Any) -> str:
        lost.symlink_to(blob)
        return str(snapshot_of(cache))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    TextEncoder.from_pretrained("owner/tiny", cache_folder=cache)
    assert lost.exists()


@pytest.mark.parametrize(
    "missing", ["modules.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"]
)
def test_a_partial_snapshot_is_completed(cache: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries leave partial snapshots behind, and downloads are interrupted."""
    path = snapshot_of(cache) / missing
    blob = path.readlink()
    path.unlink()
    asked = {}

    def download(repository: str, **keywords: Any) -> str:
        asked.update(keywords, repository=repository)
        path.symlink_to(blob)
        return str(snapshot_of(cache))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    TextEncoder.from_pretrained("owner/tiny", cache_folder=cache, token="secret")
    assert (asked["repository"], asked["token"], asked["local_files_only"]) == ("owner/tiny", "secret", False)
    assert asked["allow_patterns"] == ["*.json", "*.txt", "*.safetensors"]


def test_a_name_without_an_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = []

    def download(repository: str, **keywords: Any) -> str:
        names.append(repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    locate.locate("all-MiniLM-L6-v2", cache_folder=tmp_path)
    assert names == ["sentence-transformers/all-MiniLM-L6-v2"]
