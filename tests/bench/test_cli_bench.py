# SPDX-License-Identifier: Apache-2.0
"""`selfattn bench` as a user runs it: a process, from anywhere, with no peer."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest

import selfattn
from selfattn import cli
from selfattn.bench import bert, options, random_model, run, timing, workloads

PACKAGE = Path(selfattn.__file__).parent.parent
QUICK = ["--smoke", "--rounds", "2", "--min-time", "0.001"]
NO_PEERS = """
import sys
for name in ("torch", "transformers", "onnx", "onnxruntime", "openvino", "threadpoolctl", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
from selfattn.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bench(*arguments, code=NO_PEERS, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", code, "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )


def parsed(*arguments):
    parser = ArgumentParser()
    options.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    run.complete(chosen)
    return chosen


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from support import tiny_models

    return tiny_models.build(tmp_path_factory.mktemp("model"))


# ---- runs ----


def test_the_operator_needs_numpy_alone(tmp_path):
    result = bench("operator", *QUICK, "--threads", "1,2", "--json", "new/out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "new" / "out.json").read_text())
    rows = [(row["shape"], row["threads"]) for row in document["results"]]
    assert rows == [(shape, threads) for threads in (1, 2) for shape in run.SMOKE_SHAPES["operator"]]
    for row in document["results"]:
        measured = row["contenders"]["selfattn"]
        assert len(measured["round_seconds"]) == 2
        assert 0 <= measured["max_error"] <= row["tolerance"]
        assert measured["fraction_of_peak"] > 0
        assert row["repeated"] == 0  # --smoke has no patience
        assert row["shape"] in result.stdout
    assert set(document["machine"]["limits"]) == {"1", "2"}
    assert document["machine"]["versions"]["selfattn"] == selfattn.__version__
    assert result.stdout.index("FMA peak") < result.stdout.index("1x2x32x16")


def test_absent_peers_are_named():
    result = bench("operator", *QUICK, "--shapes", "1x1x4x4", "--vs", "torch,numpy")
    assert result.returncode == 0
    assert result.stdout.count("absent") == 4  # in the row and below the table
    assert "numpy is absent: its threads are set with threadpoolctl, which is not installed" in result.stdout
    assert "torch is absent: " in result.stdout


def test_decode(tmp_path):
    arguments = ["--caches", "float32,int8", "--queries", "1,3", "--json", str(tmp_path / "out.json")]
    result = bench("decode", *QUICK, "--shapes", "1x4x2x20x8", *arguments)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(row["dtype"], row["queries"]) for row in rows] == [
        (dtype, queries) for dtype in ("float32", "int8") for queries in (1, 3)
    ]
    for row in rows:
        measured = row["contenders"]["selfattn"]
        rate = row["bytes"] / measured["median_seconds"] / 1e9
        assert measured["gigabytes_per_second"] == pytest.approx(rate)
        assert len(row["read_gigabytes_per_second"]) == len(measured["round_seconds"])
    assert "1x4x2x20x8 q3 int8" in result.stdout


def test_the_encoder_is_verified_without_pytorch(model, tmp_path):
    arguments = ["--shapes", "2x8,ragged3", "--model", str(model), "--json", str(tmp_path / "out.json")]
    result = bench("encoder", *QUICK, *arguments)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["shape"] for row in rows] == ["2x8", "ragged3"]
    assert all(row["contenders"]["selfattn"]["max_error"] <= row["tolerance"] for row in rows)


def test_an_encoder_with_another_weight_is_wrong(model, monkeypatch, capsys):
    linear = bert.Bert.linear
    monkeypatch.setattr(bert.Bert, "linear", lambda self, x, name: linear(self, x, name) * 1.001)
    assert cli.main(["bench", "encoder", *QUICK, "--shapes", "1x4", "--model", str(model)]) == 1
    captured = capsys.readouterr()
    assert "WRONG" in captured.out
    assert captured.err.splitlines()[-1] == (
        "selfattn: error: selfattn itself could not be measured: 1x4 on 1 thread"
    )


def test_the_specification_of_an_encoder_is_the_encoder(model):
    case = workloads.encoder_workload("3x7", model)
    network = selfattn.TextEncoder.from_pretrained(str(model))._network
    assert timing.verified_error(lambda: network(*case.packed), case) < 1e-5
    assert np.ptp(case.expected) > 1


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    place = tmp_path / "plot.png"
    assert cli.main(["bench", "operator", *QUICK, "--shapes", "1x1x4x4", "--plot", str(place)]) == 0
    assert place.read_bytes().startswith(b"\x89PNG")


def test_bench_run_py_is_the_same(tmp_path):
    script = PACKAGE / "bench" / "run.py"
    if not script.exists():
        pytest.skip("not in the source tree")
    command = [sys.executable, str(script), "operator", *QUICK, "--shapes", "1x1x4x4"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)}
    )
    assert (result.returncode, "1x1x4x4" in result.stdout) == (0, True)


# ---- options ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["operators"], "'operators' is none of operator, decode, encoder, sweep"),
        (["operator", "--vs", "torch,tensorflow"], "'tensorflow' is none of numpy, torch"),
        (["operator", "--shapes", "1x2x3"], "shape '1x2x3' is none of BATCHxHEADSxLENGTHxHEAD_DIM"),
        (["operator", "--shapes", "1x2x3x4x5"], "--shapes 1x2x3x4x5 is for decode, not for operator"),
        (["operator", "--threads", "1,0"], "'0' is not a whole number above 0"),
        (["operator", "--rounds", "two"], "'two' is not a whole number above 0"),
        (["operator", "--min-time", "nan"], "'nan' is not a number above 0"),
        (["decode", "--queries", "-1"], "'-1' is not a whole number above 0"),
        (["decode", "--caches", "int4"], "'int4' is none of float32, bfloat16, int8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_understood_ends_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "--shapes", "1x3x2x8x8"], "shape 1x3x2x8x8: 3 heads are no multiple of 2 kv_heads"),
        (["encoder", "--model", "nowhere"], "--model nowhere has no model.safetensors"),
        (["operator", "--json", "."], ". is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_ends_with_1_before_the_work(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("this is the work"))
    assert cli.main(["bench", *arguments]) == 1
    assert capsys.readouterr().err == f"selfattn: error: {message}\n"


def test_more_tokens_than_the_model_takes(model, capsys):
    assert cli.main(["bench", "encoder", "--shapes", "1x100", "--model", str(model)]) == 1
    assert "asks for 100 tokens and" in capsys.readouterr().err


def test_the_shapes_say_which_suites(model):
    assert parsed("--shapes", "1x4x2x8x8,1x1x8x8").suites == ["operator", "decode"]
    assert parsed("--shapes", "2x8", "--model", str(model)).suites == ["encoder"]
    assert parsed("decode", "operator", "decode").suites == ["operator", "decode"]


def test_an_encoder_that_nobody_named_is_left_out_without_a_model(monkeypatch, capsys):
    monkeypatch.setattr(workloads, "CARRIER", "no_such_package")
    assert parsed().suites == ["operator", "decode", "sweep"]
    assert "encoder is left out: encoders need a model" in capsys.readouterr().err


def test_every_peer_takes_part_unless_it_only_smokes():
    assert parsed("operator").vs == list(options.PEERS)
    assert parsed("operator", "--smoke").vs == []
    assert parsed("operator", "--vs", "").vs == []
    assert parsed("operator", "--vs", "torch,torch", "--smoke").vs == ["torch"]


def test_the_command_line_loads_nothing_that_measures():
    code = "import sys; import selfattn.cli; selfattn.cli._parser(); print(*sys.modules)"
    loaded = bench(code=code).stdout.split()
    assert {name for name in loaded if name.startswith("selfattn.bench")} == {
        "selfattn.bench",
        "selfattn.bench.options",
    }


# ---- sweeps, precisions, models of random weights ----


def test_a_sweep_works_on_the_same_tokens_at_every_length(tmp_path):
    result = bench("sweep", *QUICK, "--shapes", "16,8192", "--json", str(tmp_path / "out.json"))
    assert result.returncode == 0, result.stderr
    short, long = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (short["shape"], long["shape"]) == ("16", "8192")
    assert short["bytes"] == long["bytes"]
    assert long["flops"] == 512 * short["flops"]
    assert "sweep over the length of the sequences" in result.stdout


def test_bfloat16_is_verified_on_numbers_that_it_has(tmp_path):
    pytest.importorskip("ml_dtypes")
    case = workloads.attention_workload("1x2x32x16", "bfloat16")
    assert all(np.array_equal(x, x.astype("bfloat16").astype(np.float32)) for x in case.arrays)
    assert case.tolerance == pytest.approx(2**-7 * np.abs(case.expected).max())
    arguments = ["--precision", "bfloat16", "--vs", "numpy", "--json", str(tmp_path / "out.json")]
    result = bench(*QUICK, *arguments, "--shapes", "1x2x32x16,16")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(row["kind"], row["precision"]) for row in rows] == [
        ("operator", "bfloat16"),
        ("sweep", "bfloat16"),
    ]
    assert all(list(row["contenders"]) == ["selfattn"] for row in rows)
    assert all(row["absent"] == {"numpy": "it has no bfloat16 products"} for row in rows)
    assert "bfloat16 peak" in result.stdout
    assert "operator, bfloat16, 1 thread" in result.stdout


def test_an_encoder_in_bfloat16(model, tmp_path):
    pytest.importorskip("ml_dtypes")
    arguments = ["--precision", "bfloat16", "--model", str(model), "--json", str(tmp_path / "out.json")]
    result = bench("encoder", *QUICK, *arguments, "--shapes", "2x8,ragged3", "--vs", "onnxruntime")
    assert result.returncode == 0, result.stderr
    for row in json.loads((tmp_path / "out.json").read_text())["results"]:
        assert (row["precision"], row["absent"]) == (
            "bfloat16",
            {"onnxruntime": "it has no bfloat16 products"},
        )
        assert row["contenders"]["selfattn"]["max_error"] <= row["tolerance"]
        assert len(row["bfloat16_peak_gflops"]) == len(row["contenders"]["selfattn"]["round_seconds"])


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_the_peers_encode_in_bfloat16(name, model):
    pytest.importorskip("ml_dtypes")
    for library in {name, "torch", "transformers", "onnx"}:
        pytest.importorskip(library)
    flags = Path("/proc/cpuinfo")
    if name == "openvino" and flags.exists() and "avx512_bf16" not in flags.read_text():
        pytest.skip("OpenVINO computes in float32 where the processor has no bfloat16 products")
    case = workloads.encoder_workload("2x8", model, "bfloat16")
    for build in run.CONTENDERS["encoder"][name](case, 1).values():
        assert timing.verified_error(build(), case) > 1e-5  # not in float32


def test_a_precision_is_for_all_but_decoding(model, capsys):
    pytest.importorskip("ml_dtypes")
    assert parsed("--precision", "bfloat16", "--model", str(model)).suites == list(run.BY_PRECISION)
    with pytest.raises(SystemExit):
        cli.main(["bench", "decode", "operator", "--precision", "bfloat16"])
    assert "--precision is for operator, encoder, sweep, not for decode" in capsys.readouterr().err


def test_a_model_of_random_weights(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
    config = random_model.RANDOM_MODELS["bert-base"] | sizes | {"vocab_size": 99}
    monkeypatch.setitem(random_model.RANDOM_MODELS, "bert-base", config)
    random_model.models.cache_clear()
    models = random_model.models()
    place = str(tmp_path / "out.json")
    arguments = ["bench", "encoder", *QUICK, "--model", "bert-base", "--json", place]
    assert cli.main([*arguments, "--shapes", "1x3,2x5"]) == 0
    assert cli.main([*arguments, "--shapes", "ragged3"]) == 1
    models.cleanup()
    random_model.models.cache_clear()
    rows = json.loads(Path(place).read_text())["results"]
    assert [(row["shape"], row["random_model"]) for row in rows] == [
        ("1x3", "bert-base"),
        ("2x5", "bert-base"),
    ]


def test_a_large_model_is_measured_at_few_shapes():
    chosen = parsed("encoder", "--model", "bert-base")
    assert run.default_shapes("encoder", chosen) == run.RANDOM_SHAPES
    assert run.default_shapes("encoder", parsed("encoder")) == run.SHAPES["encoder"]
