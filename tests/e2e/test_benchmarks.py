"""The benchmarks run from end to end, with the contenders that need no extra environment."""

import gzip
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engines import schedule
from app.engines.models.source import locate_model
from app.engines.torch import TorchEngine
from benchmarks import rerankers
from benchmarks.shapes import SHAPES
from benchmarks.speed import ceiling, compare, gpu, models
from benchmarks.speed.quality import BROKEN, drifts
from tests.conftest import free_port
from tests.e2e.process import FIXED, ROOT
from tests.pages.reader import check_self_contained, read

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`bench("spans", FILE)`: the figures of `scripts/bench`. It runs in this process, which has imported torch."""
    for name, value in FIXED.items():
        monkeypatch.setenv(name, str(value))

    def run(*arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("benchmarks", run_name="__main__")
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return json.loads(printed.out)

    return run


def test_compare_measures_every_contender(
    tmp_path: Path, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "SIZE", 512)
    monkeypatch.setitem(compare.WORKLOADS, "short", compare.Workload(3, (20, 60), alone=2, together=4))
    row = {
        "query": "what causes tides",
        "documents": [
            {"id": "a", "text": "Bread is baked."},
            {"id": "b", "text": "The gravity of the moon causes tides."},
        ],
        "qrels": {"b": 1},
    }
    (tmp_path / "labelled.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    options = ["--contenders", "openvino-int8,predict", "--workloads", "short", "--clients", "1,2", "--rounds", 1]
    figures = bench("compare", *options, "--data", tmp_path, "--html", tmp_path / "report.html")
    assert figures["ceilings_gflops"]["int8"] > 0
    service, predict = figures["contenders"]
    assert (service["contender"], predict["contender"]) == ("reranker, openvino int8", "CrossEncoder.predict, torch")
    for contender in (service, predict):
        assert set(contender["cells"]) == {"short, 1", "short, 2"}
        assert all(cell["documents_per_second"] > 0 for cell in contender["cells"].values())
        assert contender["ndcg_at_10"] == 1
        assert contender["peak_memory_mb"] > 50
        assert contender["start_seconds"] > 0
    document = (tmp_path / "report.html").read_text()
    check_self_contained(document)
    throughput, _ = (table.rows() for table in read(document).all("table"))
    assert [row[0] for row in throughput[1:]] == [service["contender"], predict["contender"]]
    assert throughput[1][1] == f"{service['cells']['short, 1']['documents_per_second']:.3g}"


def test_budgets_and_depths_are_compared(tmp_path: Path, bench: Callable[..., Any]) -> None:
    file = tmp_path / "labelled.jsonl"
    documents = [f"Bread number {number} is baked." for number in range(9)] + ["The gravity of the moon causes tides."]
    row = {"query": "what causes tides", "documents": documents, "qrels": [0] * 9 + [1]}
    file.write_text("\n".join([json.dumps(row)] * 3))
    figures = bench("budget", file, "--depths", 2, "--budgets", 60_000, "--clients", "1,2")
    assert figures["queries"] == 3
    rows = figures["rows"]
    ways = [(1, "depth 2", 2.0), (1, "60000 ms", 10.0), (2, "depth 2", 2.0), (2, "60000 ms", 10.0)]
    assert [(row["clients"], row["way"], row["read"]) for row in rows] == ways
    assert all(row["ndcg_at_10"] == 1 for row in rows)
    assert [row["overrun"] for row in rows] == [None, 0, None, 0]


def test_cascades_are_compared_with_their_models(tmp_path: Path, bench: Callable[..., Any]) -> None:
    file = tmp_path / "labelled.jsonl"
    documents = [f"Bread number {number} is baked." for number in range(9)] + ["The gravity of the moon causes tides."]
    file.write_text(json.dumps({"query": "what causes tides", "documents": documents, "qrels": [0] * 9 + [1]}))
    cascade = ["--cascade", "embedded,embedded:multilingual", "--cascade-top-k", "1,3"]
    rows = bench("budget", file, "--depths", 2, "--budgets", 60_000, *cascade, "--clients", 1)["rows"]
    assert [(row["way"], row["read"], row["read_by_large"]) for row in rows] == [
        ("small, depth 2", 2, None),
        ("small, 60000 ms", 10, None),
        ("large, depth 2", 2, None),
        ("large, 60000 ms", 10, None),
        ("cascade, top 1", 10, 1),
        ("cascade, top 3", 10, 3),
        ("cascade, 60000 ms", 10, 10),
    ]
    assert all(row["ndcg_at_10"] == 1 for row in rows)


def test_a_missing_docker_engine_is_reported_in_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "container"],
        cwd=ROOT,
        env=os.environ | {"DOCKER_HOST": f"tcp://127.0.0.1:{free_port()}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Cannot reach a Docker engine: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(
    not (shutil.which("haproxy") and shutil.which("redis-server")), reason="haproxy or redis-server is not installed"
)
def test_the_routing_benchmark_shows_that_equal_queries_find_more_scores_on_one_replica() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "routing",
        "--queries",
        "60",
        "--requests",
        "450",
        "--documents",
        "2",
    ]
    result = subprocess.run(
        [*command, "--shares", "20", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    [row] = figures["rows"]
    assert (row["entries"], row["share"]) == (24, 0.2)
    least, equal, shared = (row[name]["hit_rate"] for name in ("least connections", "equal queries", "shared Redis"))
    assert 0 < least < equal < figures["limit"] <= 1
    assert least < shared <= figures["limit"]


def test_a_benchmark_without_its_programs_is_reported_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "routing"]
    environment = os.environ | {"PATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "haproxy is not installed: install the Debian package\n"


def test_the_spans_benchmark_measures_each_kind_of_request(tmp_path: Path, bench: Callable[..., Any]) -> None:
    rows = [
        {"query": f"moon {row}", "documents": [{"id": "a", "text": "The moon. " * 9}], "qrels": {"a": 1}}
        for row in range(4)
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    figures = bench("spans", file, "--queries", 2)
    assert figures["words_per_document"] == 18
    assert [*figures["seconds"]] == ["no passages", "max_spans 3", "max_spans 3, top_k 5"]
    assert min(figures["seconds"].values()) > 0


def test_the_memory_benchmark_measures_models_alone_and_together(
    bench: Callable[..., Any], tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tiny["RERANKER_MODEL"])
    monkeypatch.setenv("RERANKER_PRECISION", str(tiny["RERANKER_PRECISION"]))
    services = bench("memory", "--models", f"{model},{model}", "--documents", 20)["services"]
    assert [each["models"] for each in services] == [[model], [model], [model, model]]
    assert all(each["used"] > 50e6 < each["unloaded"] for each in services)


def test_the_quality_benchmark_measures_each_service_and_the_drift(
    tmp_path: Path, bench: Callable[..., Any], tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in tiny.items():
        monkeypatch.setenv(name, str(value))
    rows = [
        {
            "query": f"moon {row}",
            "documents": [{"id": "a", "text": "The moon."}, {"id": "b", "text": "Bread."}],
            "qrels": {"a": 1},
        }
        for row in range(4)
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    figures = bench("quality", file, "--clients", "1,2", "--rounds", 1, "--second-model", tiny["RERANKER_MODEL"])
    assert [(row["way"], row["clients"]) for row in figures["rows"][::3]] == [
        ("default", 1),
        ("second model for all", 1),
        ("second model for 5 %", 2),
    ]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in figures["rows"])
    second = figures["second_model"]["second model for all"]
    assert sum(second["requests"].values()) in (15, 16)  # the last one may still be running
    assert second["average_tau"] == 1
    assert figures["drift"]["1.0"] == 0  # all queries have the same documents, so nothing is broken
    assert drifts([0.9, 0.9, 0.8, 0.8] * 2, [0.1] * 8) == pytest.approx({share: share for share in BROKEN}, abs=0.05)


def test_the_dialects_benchmark_measures_each_dialect(
    bench: Callable[..., Any], tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in tiny.items():
        monkeypatch.setenv(name, str(value))
    figures = bench("dialects", "--requests", 10)
    assert {"native", "Amazon Bedrock", "Google", "Mixedbread", "Pinecone", "Voyage"} < figures.keys()
    assert figures["native"]["added_ms"] == 0
    assert all(figure["p50_ms"] > 0 for figure in figures.values())


def test_the_models_benchmark_measures_each_shape(
    tmp_path: Path, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(rerankers.RERANKERS["ettin-17m"], layers=2, width=64, inner=96, heads=2, window=64)
    monkeypatch.setitem(rerankers.RERANKERS, "tiny", tiny)
    monkeypatch.setattr(models, "WORK", tmp_path)
    load = ["--documents", 2, "--tokens", 20, "--rounds", 1]
    figures = bench("models", "--shapes", "tiny", *load, "--precision", "bf16")
    assert (figures["engine"], figures["documents"], figures["tokens"]) == ("openvino bf16", 2, 20)
    [row] = figures["shapes"]
    assert (row["model_type"], row["layers"], row["width"], row["problem"]) == ("modernbert", 2, 64, None)
    # A query of 9 words, the document and 4 special tokens. Some words are two tokens.
    assert 33 <= row["tokens_per_pair"] < 45
    ours, theirs = row["served_documents_per_second"], row["torch_documents_per_second"]
    assert row["ratio"] == pytest.approx(ours / theirs)
    assert min(ours, theirs, row["start_seconds"]) > 0
    assert min(row["torch_peak_memory_mb"], row["served_peak_memory_mb"]) > 50


@pytest.mark.parametrize(("kind", "prompt"), [("bge-base", 4), ("qwen3-0.6b", 66)])
def test_the_shapes_are_models_that_can_be_exported(tmp_path: Path, kind: str, prompt: int) -> None:
    """`prompt`: tokens around the texts, special ones or those of the template."""
    shape = replace(rerankers.RERANKERS[kind], layers=2, width=64, inner=96, heads=8)
    folder = rerankers.make_reranker(shape, tmp_path / kind)
    engine = TorchEngine(locate_model(str(folder), None), "cpu", None, 1)
    assert engine.exportable()
    assert engine.info.max_length == shape.window
    assert engine.encode("the time", ["and year"])[0].length - 4 == prompt


def test_the_gpu_benchmark_runs_without_a_gpu(
    tmp_path: Path, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = SHAPES["bert-base"] | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    monkeypatch.setattr(gpu, "WORK", tmp_path)
    monkeypatch.setitem(gpu.SIZES, "cpu", 64)  # CPUs without bf16 instructions are slow
    monkeypatch.setattr(schedule, "MEASURE_SECONDS", 0.1)
    monkeypatch.setenv("RERANKER_PRECISION", "auto")
    options = ["--device", "cpu", "--shapes", "tiny", "--workloads", "short", "--requests", 1, "--rounds", 1]
    contenders = "packed;padded;packed, HTTP;predict fp32"
    figures = bench("gpu", *options, "--contenders", contenders, "--batches", 2)
    assert figures["ceiling_flops"] > 0
    [shape] = figures["shapes"]
    assert [row["remark"] for row in shape["contenders"]] == [None] * 4
    assert all(row["documents_per_second"]["short"] > 0 for row in shape["contenders"])
    assert shape["parity"]["kendall_tau"] == pytest.approx(1)
    assert shape["parity"]["logits_apart"] < 1e-4
