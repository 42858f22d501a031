# SPDX-License-Identifier: Apache-2.0
"""The command line, as a process with a tiny real model and as a function with one that records its calls."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import selfattn
import selfattn.text
from selfattn import cli
from selfattn.view import AttentionMap

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(selfattn.__file__).parent.parent),  # a process finds the package that we test
    "HF_HUB_OFFLINE": "1",
}
TEXT = "The pizza came out\nof the oven\r\n\nand it tasted good"  # four texts, the third empty


class FakeEncoder:
    """Stands in for TextEncoder: remembers what it was asked, and fails on request."""

    calls: ClassVar[list] = []
    failure: ClassVar[BaseException | None] = None

    @classmethod
    def from_pretrained(cls, name, *, precision=None):
        cls.calls.append((name, precision))
        return cls()

    def encode(self, texts, **options):
        if self.failure:
            raise self.failure
        self.calls.append((texts, options))
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    def attention_map(self, sentence):
        tokens = ["[CLS]", *sentence.split(), "[SEP]"]
        words = [None, *range(len(tokens) - 2), None]
        weights = np.full((2, 2, len(tokens), len(tokens)), 1 / len(tokens))
        return AttentionMap(tokens, weights, words=words)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(selfattn.text, "TextEncoder", FakeEncoder)
    monkeypatch.setattr(FakeEncoder, "calls", [])
    return FakeEncoder


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(TEXT.encode())
    return str(path)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from support import tiny_models

    return str(tiny_models.build(tmp_path_factory.mktemp("model")))


def run(*arguments, stdin=b"", **environment):
    """`python -m selfattn` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "selfattn", *arguments],
        input=stdin,
        capture_output=True,
        timeout=120,
        env={**ENVIRONMENT, **environment},
    )


def error_of(result):
    """The one line that a failed run prints."""
    assert result.returncode == 1
    text = result.stderr.decode()
    assert re.fullmatch(r"selfattn: error: .+\n", text)
    return text


# ---- embed ----


def test_embed_writes_what_encode_returns(model, lines, tmp_path):
    out = tmp_path / "out.npy"
    result = run("embed", lines, "-o", str(out), "--model", model, "--threads", "1")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    texts = ["The pizza came out", "of the oven", "", "and it tasted good"]
    expected = selfattn.text.TextEncoder.from_pretrained(model).encode(texts)
    np.testing.assert_array_equal(np.load(out), expected)


def test_embed_from_standard_input_to_standard_output(model, lines, tmp_path):
    piped = run("embed", "-", "-o", "-", "--model", model, stdin=TEXT.encode())
    assert (piped.returncode, piped.stderr) == (0, b"")
    run("embed", lines, "-o", str(tmp_path / "out.npy"), "--model", model)
    assert piped.stdout == (tmp_path / "out.npy").read_bytes()


def test_embed_hands_its_options_on(fake, lines, tmp_path):
    out = str(tmp_path / "out.npy")
    options = ["--batch-size", "7", "--threads", "2", "--normalize", "--no-progress"]
    options += ["--precision", "bfloat16"]
    assert cli.main(["embed", lines, "-o", out, "--model", "a model", *options]) == 0
    loaded, (texts, given) = fake.calls
    assert loaded == ("a model", "bfloat16")
    assert texts == ["The pizza came out", "of the oven", "", "and it tasted good"]
    assert given == {
        "batch_size": 7,
        "num_threads": 2,
        "normalize_embeddings": True,
        "show_progress_bar": False,
    }
    np.testing.assert_array_equal(np.load(out)[:, 0], [18, 11, 0, 18])


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_only_on_a_terminal(fake, lines, tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert cli.main(["embed", lines, "-o", str(tmp_path / "out.npy")]) == 0
    assert fake.calls[-1][1]["show_progress_bar"] is terminal
    assert cli.main(["embed", lines, "-o", str(tmp_path / "out.npy"), "--no-progress"]) == 0
    assert fake.calls[-1][1]["show_progress_bar"] is False


def test_embed_of_nothing(fake, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert cli.main(["embed", str(empty), "-o", str(tmp_path / "out.npy")]) == 0
    assert fake.calls[-1][0] == []


def test_a_byte_order_mark_is_no_text(fake, tmp_path):
    marked = tmp_path / "marked.txt"
    marked.write_bytes("\ufeffone\ntwo\n".encode())
    assert cli.main(["embed", str(marked), "-o", str(tmp_path / "out.npy")]) == 0
    assert fake.calls[-1][0] == ["one", "two"]


def test_only_line_feeds_end_a_text(fake, monkeypatch, tmp_path):
    stdin = io.TextIOWrapper(io.BytesIO("a\u2028b\x0cc\nd\re".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["embed", "-", "-o", str(tmp_path / "out.npy")]) == 0
    assert fake.calls[-1][0] == ["a\u2028b\x0cc", "d\re"]


# ---- what can go wrong ----


def test_a_missing_file(model, tmp_path):
    message = error_of(run("embed", "nowhere.txt", "-o", str(tmp_path / "out.npy"), "--model", model))
    assert message == "selfattn: error: nowhere.txt: No such file or directory\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model(lines, tmp_path):
    assert "no/such/model" in error_of(
        run("embed", lines, "-o", str(tmp_path / "o"), "--model", "./no/such/model")
    )
    assert not (tmp_path / "o").exists()


def test_text_that_is_not_utf8(model, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good\nb\xe4d\n")
    message = error_of(run("embed", str(bad), "-o", str(tmp_path / "out.npy"), "--model", model))
    assert "bad.txt: line 2 is not UTF-8" in message


@pytest.mark.parametrize("place", ["missing/out.npy", "."])
def test_a_place_that_cannot_be_written_is_noticed_before_the_work(fake, lines, tmp_path, capsys, place):
    out = tmp_path / place
    assert cli.main(["embed", lines, "-o", str(out)]) == 1
    assert fake.calls == []
    assert capsys.readouterr().err.startswith(f"selfattn: error: {out}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]


@pytest.mark.parametrize(("failure", "code"), [(MemoryError("no room"), 1), (KeyboardInterrupt(), 130)])
def test_a_failed_run_leaves_no_file_and_keeps_the_old_one(fake, lines, tmp_path, monkeypatch, failure, code):
    out = tmp_path / "out.npy"
    out.write_bytes(b"before")
    monkeypatch.setattr(fake, "failure", failure)
    assert cli.main(["embed", lines, "-o", str(out)]) == code
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "out.npy"]


def test_an_error_is_one_line_even_if_its_message_is_not(fake, lines, tmp_path, monkeypatch, capsys):
    for failure, line in [(ValueError("one\n  two"), "one two"), (RuntimeError(), "RuntimeError")]:
        monkeypatch.setattr(fake, "failure", failure)
        assert cli.main(["embed", lines, "-o", str(tmp_path / "out.npy")]) == 1
        assert capsys.readouterr().err == f"selfattn: error: {line}\n"


def test_a_link_is_followed_and_its_target_replaced(fake, lines, tmp_path):
    target, link = tmp_path / "target.npy", tmp_path / "link.npy"
    target.write_bytes(b"before")
    link.symlink_to(target)
    assert cli.main(["embed", lines, "-o", str(link)]) == 0
    assert link.is_symlink()
    assert np.load(target).shape == (4, 2)


def test_a_device_is_written_and_not_replaced(fake, lines):
    assert cli.main(["embed", lines, "-o", os.devnull]) == 0
    assert not Path(os.devnull).is_file()


def test_an_array_is_not_for_a_terminal(fake, lines, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["embed", lines, "-o", "-"]) == 1
    assert "not for a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["embed", "file"],
        ["embed", "file", "-o", "out", "--threads", "0"],
        ["embed", "file", "-o", "out", "--batch-size", "many"],
        ["explain"],
        ["explain", "a", "--layer", "last"],
        ["info", "--yaml"],
    ],
)
def test_usage_errors_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: selfattn" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_traceback(model):
    code = "import sys; from selfattn.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "explain", "pizza", "--model", model, "-o", "-"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_one_line(model):
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "selfattn", "explain", "pizza", "--model", model],
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
    assert "No space left" in error_of(result)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_with_130_and_no_file(model, tmp_path):
    fifo, out = tmp_path / "lines", tmp_path / "out.npy"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "selfattn", "embed", str(fifo), "-o", str(out), "--model", model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        writer = os.open(fifo, os.O_WRONLY)  # returns when the process has begun to read
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""
        os.close(writer)
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]


# ---- explain, info ----


def test_explain_prints_a_map(model):
    result = run("explain", "The pizza tasted good", "--model", model, "--layer", "-1", "--head", "0")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[0].endswith("layer 1, head 0")
    assert "\x1b" not in result.stdout.decode()
    assert lines[-1].split()[0] == "[SEP]"


def test_explain_writes_a_page_and_prints_its_path(fake, tmp_path, capsys):
    out = tmp_path / "map.html"
    assert cli.main(["explain", "a pizza", "-o", str(out), "--layer", "1", "--head", "0"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert '"start":{"layer":1,"head":0,"token":null}' in out.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]


def test_explain_words_leaves_out_special_tokens_in_text(fake, capsys):
    assert cli.main(["explain", "a pizza", "--words"]) == 0
    assert "[CLS]" not in capsys.readouterr().out.split("pizza")[1]
    assert cli.main(["explain", "a pizza"]) == 0
    assert "[CLS]" in capsys.readouterr().out


def test_explain_a_layer_that_is_not_there(fake, tmp_path, capsys):
    out = tmp_path / "map.html"
    for arguments in (["--layer", "2"], ["--layer", "2", "-o", str(out)]):
        assert cli.main(["explain", "a pizza", *arguments]) == 1
        assert "layer=2 is out of range: there are 2" in capsys.readouterr().err
    assert not out.exists()


def test_info_as_text_and_as_json():
    facts = json.loads(run("info", "--json", SELFATTN_NUM_THREADS="1").stdout)
    assert facts["version"] == selfattn.__version__
    assert facts["instruction_set"] in facts["available"]
    assert facts["threads"] == 1
    assert facts["threads_from"] == "SELFATTN_NUM_THREADS=1"
    assert facts["numpy"] == np.__version__
    assert facts["compiler"]
    text = run("info").stdout.decode()
    assert [line.split()[0] for line in text.splitlines()] == list(facts)


def test_info_credits_the_limit_that_holds():
    facts = json.loads(run("info", "--json", OMP_NUM_THREADS="1").stdout)
    assert (facts["threads"], facts["threads_from"]) == (1, "OMP_NUM_THREADS=1")
    facts = json.loads(run("info", "--json", SELFATTN_NUM_THREADS="1000000").stdout)
    assert facts["threads"] <= 1024
    assert "SELFATTN_NUM_THREADS" not in facts["threads_from"]


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"selfattn {selfattn.__version__}\n"
