# SPDX-License-Identifier: Apache-2.0
"""The command ``selfattn``: embed, explain, bench, info.

Exit codes: 0 done, 1 failed (one line on stderr says why), 2 the command was not understood, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

import selfattn

HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, and needs no message
        _drop_output()
        return 1
    except Exception as error:
        print(f"selfattn: error: {_one_line(error)}", file=sys.stderr)
        _drop_output()
        return 1
    return 0


def _drop_output() -> None:
    """Output that cannot be written goes nowhere, or Python would try again and complain when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="selfattn", description="Exact self-attention on the CPU.")
    parser.add_argument("--version", action="version", version=f"selfattn {selfattn.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_embed(commands)
    _add_explain(commands)
    _add_bench(commands)
    _add_info(commands)
    return parser


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="embed the lines of a text file", description=_embed.__doc__)
    embed.add_argument("file", metavar="FILE", help="UTF-8 text, one text per line; - for standard input")
    embed.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="a .npy file; - for standard output"
    )
    _add_model(embed)
    embed.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="texts at a time (32)")
    embed.add_argument("--threads", type=_positive, metavar="N", help="threads (see selfattn info)")
    embed.add_argument("--normalize", action="store_true", help="scale each embedding to length 1")
    embed.add_argument(
        "--precision", choices=["bfloat16"], help="of products, where the processor has them (float32)"
    )
    embed.add_argument("--no-progress", action="store_true", help="no progress bar, even on a terminal")
    embed.set_defaults(run=_embed)


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain", help="show which word attends to which", description=_explain.__doc__
    )
    explain.add_argument("sentence", metavar="SENTENCE")
    explain.add_argument("-o", "--output", metavar="HTML", help="write a page for the browser")
    _add_model(explain)
    explain.add_argument("--layer", type=int, metavar="N", help="counted from 0, -1 the last (default: mean)")
    explain.add_argument("--head", type=int, metavar="N", help="counted from 0, -1 the last (default: mean)")
    explain.add_argument(
        "--words", action="store_true", help="merge word pieces; as text, leave out [CLS], [SEP]"
    )
    explain.set_defaults(run=_explain)


def _add_bench(commands: Any) -> None:
    from selfattn.bench.options import add_arguments

    bench = commands.add_parser(
        "bench", help="measure speed, beside other libraries", description=_bench.__doc__
    )
    add_arguments(bench)
    bench.set_defaults(run=_bench, usage_error=bench.error)


def _add_info(commands: Any) -> None:
    info = commands.add_parser("info", help="show version, threads and build", description=_info.__doc__)
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)


def _add_model(command: argparse.ArgumentParser) -> None:
    from selfattn.bench.options import CARRIER

    default = CARRIER if importlib.util.find_spec(CARRIER) else HUB_MODEL
    command.add_argument(
        "--model",
        default=default,
        metavar="NAME",
        help=f"directory, installed package or hub name ({default})",
    )


def _embed(arguments: argparse.Namespace) -> None:
    """Embed every line of FILE and write one .npy array, a float32 row for each line."""
    from selfattn.text import TextEncoder

    if arguments.output == "-" and sys.stdout.isatty():
        raise ValueError("a .npy file is not for a terminal: give -o FILE, or pipe standard output")
    with _replacing(arguments.output) as output:
        texts = _read_lines(arguments.file)
        model = TextEncoder.from_pretrained(arguments.model, precision=arguments.precision)
        embeddings = model.encode(
            texts,
            batch_size=arguments.batch_size,
            show_progress_bar=sys.stderr.isatty() and not arguments.no_progress,
            normalize_embeddings=arguments.normalize,
            num_threads=arguments.threads,
        )
        # By way of memory: numpy.save itself wants a file that can seek, and a pipe cannot.
        buffer = io.BytesIO()
        np.save(buffer, embeddings)
        output.write(buffer.getbuffer())


def _explain(arguments: argparse.Namespace) -> None:
    """Show how much each word of SENTENCE attends to each other one, as text or as a page for the browser."""
    from selfattn.text import TextEncoder

    attention = TextEncoder.from_pretrained(arguments.model).attention_map(arguments.sentence)
    if arguments.words:
        attention = attention.words(special=arguments.output is not None)
    if arguments.output is None:
        print(attention.text(layer=arguments.layer, head=arguments.head))
        return
    page = attention.to_html(layer=arguments.layer, head=arguments.head)
    with _replacing(arguments.output) as output:
        output.write(page.encode())
    if arguments.output != "-":
        print(arguments.output)


def _bench(arguments: argparse.Namespace) -> None:
    """Measure attention and encoders, as a fraction of what the machine can do and beside other libraries."""
    from selfattn.bench.run import complete, run

    try:
        complete(arguments)
    except ValueError as error:
        arguments.usage_error(str(error))
    failed = run(arguments)
    if failed:
        raise RuntimeError(f"selfattn itself could not be measured: {'; '.join(failed)}")


def _info(arguments: argparse.Namespace) -> None:
    """Show the version, the instruction set in use, the number of threads and the build."""
    facts = _facts()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {', '.join(value) if isinstance(value, list) else value}")


def _facts() -> dict[str, Any]:
    from selfattn._native import runtime as _runtime
    from selfattn.runtime import default_num_threads

    isa = os.environ.get("SELFATTN_ISA")
    num_threads, num_threads_from = default_num_threads()
    return {
        "version": selfattn.__version__,
        "instruction_set": selfattn.active_isa(),
        "instruction_set_from": f"SELFATTN_ISA={isa}" if isa else "the best that this processor has",
        "available": list(selfattn.available_isas()),
        "threads": num_threads,
        "threads_from": num_threads_from,
        "platform": platform.platform(),
        **_runtime.build_info(),
    }


def _read_lines(name: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for "-", without their line ends."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            place = f"{name}: line {number}"
            raise ValueError(f"{place} is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts


@contextmanager
def _replacing(name: str) -> Iterator[IO[bytes]]:
    """Standard output for "-"; otherwise a file that takes the place of ``name`` when the block succeeds.

    It is opened at once, so that a place that cannot be written is noticed before the work and not after.
    """
    path = Path(os.path.realpath(name))
    if name == "-":
        yield sys.stdout.buffer
    elif path.exists() and not path.is_file():  # a device or a pipe can't be replaced; a directory fails here
        with open(path, "wb") as file:
            yield file
    else:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "xb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(temporary):
                error.filename = name
            raise


def _positive(text: str) -> int:
    number = int(text) if text.strip().lstrip("+").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
