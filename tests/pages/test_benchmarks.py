"""The pages of the benchmarks, from figures like those that they print."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.engines.models.source import EMBEDDED
from benchmarks.load import Run, write
from benchmarks.page import comparison_page, model_name, open_loop_page, service_page
from benchmarks.reliability import openloop
from benchmarks.speed.compare import Cell, figures, grids
from tests.conftest import Serve
from tests.fakes import INFO
from tests.pages.reader import Element, check_self_contained, read

CEILINGS = {"int8": 1000.0, "bf16": 500.0}


class Peer:
    """A contender that has been measured."""

    is_server = True

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> float:
        return 1.5

    async def rank(self, query: str, documents: Any) -> list[float]:
        return [0.0] * len(documents)

    def peak_memory(self) -> int:
        return 250_000_000

    def stop(self) -> None:
        pass


def compared() -> tuple[Element, list[dict[str, Any]]]:
    """The page of the service and a peer that died of the long documents, and the figures behind it."""
    ours, theirs = Peer("reranker, openvino int8"), Peer("a <peer>")
    results = {
        (ours.name, "short", 1): Cell([200.0, 220.0, 240.0], [10.0, 20.0, 30.0]),
        (ours.name, "long", 8): Cell([20.0], [1000.0] * 99 + [3000.0]),
        (theirs.name, "short", 1): Cell([55.0], [40.0]),
        (theirs.name, "long", 8): Cell(died=True),
    }
    rows = [
        figures(each, results, 1e9, CEILINGS) | {"start_seconds": 1.5, "ndcg_at_10": None} for each in (ours, theirs)
    ]
    document = comparison_page({"ceilings_gflops": CEILINGS, "contenders": rows}, {"model": "m<"}, grids(rows))
    check_self_contained(document)
    return read(document), rows


def label(page: Element, title: str) -> str:
    [found] = [
        each.attributes["aria-label"]
        for each in page.all("svg")
        if each.attributes.get("aria-label", "").startswith(title)
    ]
    return found


def test_the_figures_have_the_percentiles_of_all_requests() -> None:
    _, (ours, theirs) = compared()
    cell = ours["cells"]["long, 8"]
    assert (cell["requests"], list(cell["percentiles_ms"])) == (
        100,
        ["min", "p25", "p50", "p75", "p90", "p95", "p99", "max"],
    )
    assert cell["percentiles_ms"]["p50"] == cell["p50_ms"] == 1000
    assert cell["percentiles_ms"]["max"] == 3000
    assert theirs["cells"]["long, 8"] == {}


def test_the_comparison_shows_throughput_latency_and_memory_of_each_contender() -> None:
    page, _ = compared()
    throughput, latency = (table.rows() for table in page.all("table"))
    assert throughput[1] == ["reranker, openvino int8", "220", "20", "2%, 4%", "-", "250", "1.5"]
    assert latency[2] == ["a <peer>", "40 / 40", "died"]
    assert label(page, "short, 1 client: documents/s") == (
        "short, 1 client: documents/s. reranker, openvino int8: 220; a <peer>: 55"
    )
    assert "a <peer>: died" in label(page, "long, 8 clients: documents/s")
    assert "reranker, openvino int8: min 10 ms" in label(page, "short, 1 client: time per request (3 requests)")
    assert "peer" not in label(page, "long, 8 clients: time per request (100 requests)")
    assert label(page, "Peak memory, MB").endswith("reranker, openvino int8: 250; a <peer>: 250")
    assert [each.text for each in page.all("ul", "key")[0].all("li")] == ["1 reranker, openvino int8", "2 a <peer>"]


def test_the_comparison_says_which_machine_and_model_it_was() -> None:
    page, _ = compared()
    names = [each.text for each in page.all("dt")]
    assert names == ["model", "processor", "cores", "memory", "ceilings, GFLOP/s", "date"]
    assert page.all("dd")[0].text == "m<"


def test_the_embedded_model_has_the_name_that_clients_see() -> None:
    assert (model_name(EMBEDDED), model_name(Path("/models/mine"))) == ("reranker-minilm-l6-v2", "mine")


def test_a_peer_is_drawn_with_another_colour_and_line() -> None:
    page, _ = compared()
    assert {each.attributes["class"] for each in page.all("rect")} == {"ours", "other"}
    assert {each.attributes["class"] for each in page.all("polyline")} == {"curve c0", "curve c1 dashed"}


def runs() -> list[dict[str, Any]]:
    return [
        Run(1, 20, 2.0, [0.5, 0.7], Counter({"200": 2})).summary(),
        Run(2, 20, 2.0, [], Counter({"<b>": 4})).summary(),
    ]


async def test_a_load_test_is_written_with_the_engine_of_the_service(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "load.html"
    async with serve() as http:
        url = str(http.base_url).replace("://", "://user:secret@")
        await asyncio.to_thread(write, file, "Load", runs(), url, documents=20, words="20-300")
    document = file.read_text()
    check_self_contained(document)
    assert "secret" not in document
    page = read(document)
    known = dict(zip((each.text for each in page.all("dt")), (each.text for each in page.all("dd")), strict=True))
    assert (known["model"], known["engine"], known["precision"]) == (INFO.model, "fake on cpu", "fp32")
    assert (known["documents"], known["words"]) == ("20", "20-300")
    [table] = page.all("table")
    assert table.rows()[1][:5] == ["1", "2", "2", "1.0", "20.0"]
    assert table.rows()[2][-1] == "4 × <b>"
    assert label(page, "Documents/s") == "Documents/s. 1 client: 20; 2 clients: 0"
    assert "1 client: p50 600 ms" in label(page, "Time of the requests that succeeded")
    assert "2 clients" not in label(page, "Time of the requests that succeeded")


def test_a_load_test_in_which_everything_failed_has_no_chart(tmp_path: Path) -> None:
    file = tmp_path / "load.html"
    write(file, "Load", runs()[1:], "http://127.0.0.1:9")
    check_self_contained(file.read_text())
    assert "No request succeeded." in file.read_text()


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(None, "Load", runs(), "http://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


def test_the_service_is_shown_next_to_direct_calls_of_the_library() -> None:
    column = {
        "engine": "openvino int8",
        "predict_documents_per_second": 13.2,
        "documents_per_second_1_client": 98.0,
        "documents_per_second_8_clients": 103.9,
        "memory_mb": 344,
    }
    document = service_page([column], {"model": "m"}, ("figures", ["openvino int8"], [["memory", "344"]]))
    check_self_contained(document)
    page = read(document)
    assert label(page, "openvino int8: documents/s") == (
        "openvino int8: documents/s. CrossEncoder.predict: 13.2; reranker, 1 client: 98; reranker, 8 clients: 103.9"
    )
    assert [each.attributes["class"] for each in page.all("rect")] == ["other", "ours", "ours", "ours"]
    assert label(page, "Memory of the service").endswith("openvino int8: 344 MB")


def test_a_fixed_rate_is_shown_with_its_rejections_and_without_curves_of_loads_that_got_no_answer() -> None:
    def records(status: int) -> list[dict[str, Any]]:
        answer = {} if status == 200 else {"error": {"code": status}}
        times = [{"credit_issued_ns": second * 10**9, "request_end_ns": (second + 1) * 10**9} for second in range(11)]
        return [{"metadata": each, **answer} for each in times]

    loads = [{"load": load, **openloop.figures(records(status), 0)} for load, status in ((0.5, 200), (1.2, 503))]
    document = open_loop_page(loads, {}, ("loads", ["load"], [["50%"], ["120%"]]))
    check_self_contained(document)
    page = read(document)
    assert label(page, "Rejected requests").endswith("50% of the capacity: 0%; 120% of the capacity: 100%")
    assert label(page, "Time from when").endswith(". 50% of the capacity: p50 1 s, p90 1 s, p99 1 s, max 1 s")
