"""`reranker bulk`: order, bad rows, and the same output whatever stops a run."""

import asyncio
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.bulk.checkpoint import CannotResume
from app.bulk.cluster import ClusterJob, shares
from app.bulk.command import ALONE
from app.bulk.job import Job
from app.bulk.options import KEPT
from app.bulk.output import UnwritableOutput
from app.bulk.rows import UnreadableInput
from app.config import Settings
from app.errors import EngineBroken, StartupError
from app.types import Pair
from benchmarks.texts import WORDS
from tests.commands import TERMINAL, reranker
from tests.conftest import until
from tests.e2e.process import FIXED
from tests.fakes import NAN, FakeEngine

ROOT = Path(__file__).parents[2]
# With a checkpoint after each row, a few rows are enough.
COMMAND = """
import app.bulk.run as run
run.CHECKPOINT_SECONDS = run.SLOWDOWN = 0
from app.cli import cli
cli()
"""


def rows(count: int, documents: int = 4, words: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    chosen = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(chosen.choices(WORDS, k=length))

    return [
        {"id": f"row {number}", "query": text(4), "documents": [text(words) for _ in range(documents)]}
        for number in range(count)
    ]


def write(path: Path, lines: Iterable[Any]) -> Path:
    """Strings as they are, other values as JSON."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.decode().splitlines()]


async def rank(
    source: Path,
    target: Path,
    engine: FakeEngine | None = None,
    kept: Sequence[str] = KEPT,
    overwrite: bool = False,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Job:
    job = Job(source, target, options, kept, overwrite)
    await job.run(Settings(**ALONE, **settings or {}), engine or FakeEngine())
    return job


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def stopped(source: Path, target: Path, engine: FakeEngine, after: int) -> None:
    """A run that is cancelled after it has scored this many batches."""
    running = asyncio.create_task(rank(source, target, engine))
    await until(lambda: len(engine.batches) >= after or running.done())
    engine.gate.clear()
    assert not running.done()
    running.cancel()
    engine.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_the_output_has_the_order_and_the_fields_of_the_input(tmp_path: Path) -> None:
    lines = rows(700, documents=2)
    lines[3]["documents"] = ["none of them", lines[3]["query"]] * 300
    job = await rank(write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["query"]) for row in found] == [(row["id"], row["query"]) for row in lines]
    assert [len(row["results"]) for row in found] == [len(row["documents"]) for row in lines]
    assert found[3]["results"][0]["index"] == 1
    assert all(set(row["results"][0]) == {"index", "relevance_score"} for row in found)
    counts = job.counts
    assert (counts.rows, counts.bad, counts.documents) == (700, 0, 699 * 2 + 600)
    assert counts.tokens == sum(4 + len(text.split()) for row in lines for text in row["documents"])
    assert files(tmp_path) == {"in.jsonl", "out.jsonl"}


async def test_the_fields_of_a_row_precede_the_options(tmp_path: Path) -> None:
    documents = ["moon", "moon tides", "bread"]
    lines = [
        {"qid": 7, "query": "moon tides", "documents": documents, "extra": [1]},
        {"query": "moon tides", "passages": documents, "top_n": 2, "raw_scores": False},
        {"query": "moon tides", "documents": documents, "top_k": None, "timeout_ms": 1, "on_overload": "lexical"},
    ]
    options = {"top_k": 1, "raw_scores": True, "return_documents": True}
    await rank(write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", kept=["qid", "extra"], **options)
    first, second, third = read(tmp_path / "out.jsonl")
    results = [{"index": 1, "relevance_score": 1.5, "document": {"text": "moon tides"}}]
    assert first == {"qid": 7, "extra": [1], "results": results}
    assert [result["index"] for result in second["results"]] == [1, 0]
    assert 0 < second["results"][0]["relevance_score"] < 1
    assert third == {"results": results}


async def test_bad_rows_are_listed_with_line_and_reason_and_the_others_are_ranked(tmp_path: Path) -> None:
    good = {"query": "a", "documents": ["a b"]}
    lines: list[Any] = [
        good,
        "",
        '{"query": "a", "documents": [',
        {"query": "a"},
        {"query": "", "documents": ["b"]},
        {"query": "a", "documents": []},
        {"query": "a", "documents": ["b"], "top_k": "x"},
        {"query": "a", "documents": ["b"] * 6},
        {"query": "a", "documents": ["b " * 6000]},
        ["a"],
        {"query": "a", "documents": [NAN]},
        {"query": "a", "documents": ["b"], "normalize": False},
        '{"query": "a", "documents": ["b"], "id": "\\ud800"}',
        "[" * 100_000,
        {"query": "a" * 50_000, "documents": ["b"]},
        good,
    ]
    source = write(tmp_path / "in.jsonl", lines)
    source.write_bytes(source.read_bytes() + b'{"query": "\xff", "documents": ["b"]}\n' + json.dumps(good).encode())
    settings = {"max_documents": 5, "max_text_chars": 10_000, "max_body_bytes": 40_000}
    job = await rank(source, tmp_path / "out.jsonl", settings=settings)
    assert len(read(tmp_path / "out.jsonl")) == 3
    found = {row["line"]: row["reason"] for row in read(tmp_path / "out.jsonl.bad.jsonl")}
    expected = {
        3: "is not valid JSON: Expecting value",
        4: "documents: field required",
        5: "query: must not be empty",
        6: "documents: at least one is required",
        7: "top_k: input should be a valid integer",
        8: "documents: at most 5 are accepted (RERANKER_MAX_DOCUMENTS), got 6",
        9: "documents[0]: at most 10000 characters are accepted (RERANKER_MAX_TEXT_CHARS), got 12000",
        10: "must be a JSON object",
        11: "The model gave a score that is not a number",
        12: "normalize: is not supported",
        13: "a field to copy has a broken character",
        14: "the line has more than 40000 bytes (RERANKER_MAX_BODY_BYTES)",
        15: "the line has more than 40000 bytes (RERANKER_MAX_BODY_BYTES)",
        17: "is not valid UTF-8: invalid start byte at byte 11",
    }
    assert list(found) == list(expected)
    assert [line for line, reason in expected.items() if not found[line].startswith(reason)] == []
    assert (job.counts.rows, job.counts.bad) == (3, len(expected))


async def test_compressed_files_are_read_and_written(tmp_path: Path) -> None:
    lines = rows(50)
    await rank(write(tmp_path / "in.jsonl", lines), tmp_path / "plain.jsonl")
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        await rank(write(tmp_path / "in.jsonl.gz", lines), tmp_path / name)
    assert read(tmp_path / "a.jsonl.gz") == read(tmp_path / "plain.jsonl")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


async def test_a_compressed_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl.gz", rows(300))
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(UnreadableInput, match=r"in\.jsonl\.gz: cannot be read after line \d+: "):
        await rank(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


async def test_parquet_gives_the_same_as_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `bulk` is not installed")
    from pyarrow import parquet

    lines = rows(500, documents=2)
    lines[7] |= {"top_k": 1}
    lines[8] |= {"query": None}
    source = tmp_path / "in.parquet"
    parquet.write_table(
        pyarrow.Table.from_pylist([{"top_k": None} | line for line in lines]), source, row_group_size=60
    )
    await rank(write(tmp_path / "in.jsonl", lines), tmp_path / "jsonl")
    await rank(source, tmp_path / "parquet")
    assert (tmp_path / "parquet").read_bytes() == (tmp_path / "jsonl").read_bytes()
    assert read(tmp_path / "parquet.bad.jsonl")[0]["line"] == 9
    await stopped(source, tmp_path / "stopped", FakeEngine(), 5)
    await rank(source, tmp_path / "stopped")
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "jsonl").read_bytes()


async def test_parquet_without_the_extra_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    with pytest.raises(Exception, match=r"Parquet needs the extra: pip install '\.\[bulk\]'"):
        await rank(tmp_path / "in.parquet", tmp_path / "out.jsonl")


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
async def test_a_cancelled_run_continues_where_it_stopped(tmp_path: Path, name: str) -> None:
    lines: list[Any] = rows(900, documents=3)
    lines[1:1] = ["not json", "", "{}"]
    lines.append("also not json")
    source = write(tmp_path / name, lines)
    whole = await rank(source, tmp_path / "whole")
    target, first = tmp_path / "target", FakeEngine()
    await stopped(source, target, first, 10)
    partial, state = tmp_path / "target.partial", json.loads((tmp_path / "target.state.json").read_text())
    assert 0 < state["counts"]["rows"] < 900
    assert not target.exists()
    # As after a kill: lines after the checkpoint, the last one without an end.
    with partial.open("ab") as file:
        file.write((tmp_path / "whole").read_bytes()[partial.stat().st_size :][:400])
    second = FakeEngine()
    job = await rank(source, target, second)
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()
    bad = [path.with_name(path.name + ".bad.jsonl").read_bytes() for path in (target, tmp_path / "whole")]
    assert bad[0] == bad[1]
    assert job.counts == whole.counts
    assert 0 < sum(map(len, second.batches)) < 2700
    assert not {file for file in files(tmp_path) if file.startswith("target.")} - {"target.bad.jsonl"}


@pytest.mark.parametrize("renamed", [False, True])
async def test_a_run_that_was_killed_in_its_last_step_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, renamed: bool
) -> None:
    source, target = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("app.bulk.output.Output.finish", lambda _: None)
        await rank(source, target)
    if renamed:
        target.with_name("out.jsonl.partial").rename(target)
    assert (await rank(source, target, engine)).counts.rows == 20
    assert len(read(target)) == 20
    assert files(tmp_path) == {"in.jsonl", "out.jsonl"}
    assert engine.batches == []


async def test_a_run_with_other_input_model_or_options_does_not_continue(tmp_path: Path) -> None:
    lines = rows(900, documents=3)
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    await stopped(source, target, FakeEngine(), 10)
    partial = (tmp_path / "out.jsonl.partial").read_bytes()
    with pytest.raises(CannotResume, match=r"options\.top_k \(null then, 2 now\)"):
        await rank(source, target, top_k=2)
    with pytest.raises(CannotResume, match=r"settings\.max_documents \(1000 then, 9 now\)"):
        await rank(source, target, settings={"max_documents": 9})
    with pytest.raises(CannotResume, match=r"settings\.span_candidates \(\d+ then, 3 now\)"):
        await rank(source, target, settings={"span_candidates": 3})
    other = FakeEngine()
    other.info = replace(other.info, model="other")
    with pytest.raises(CannotResume, match=r'model\.name \("fake" then, "other" now\).*add --overwrite'):
        await rank(source, target, other)
    write(source, [*lines, lines[0]])
    with pytest.raises(CannotResume, match=r"input\.bytes \(\d+ then, \d+ now\)"):
        await rank(source, target)
    assert (tmp_path / "out.jsonl.partial").read_bytes() == partial
    await rank(source, target, top_k=2, overwrite=True)
    assert [len(row["results"]) for row in read(target)] == [2] * 901
    with pytest.raises(CannotResume, match="exists: choose another name, or add --overwrite"):
        await rank(source, target, top_k=2)


async def test_files_that_were_changed_are_not_continued(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", rows(900, documents=3)), tmp_path / "out.jsonl"
    await stopped(source, target, FakeEngine(), 10)
    os.truncate(tmp_path / "out.jsonl.partial", 3)
    with pytest.raises(CannotResume, match=r"out\.jsonl\.partial is shorter than the \d+ bytes"):
        await rank(source, target)
    (tmp_path / "out.jsonl.state.json").write_text("{")
    with pytest.raises(CannotResume, match=r"out\.jsonl\.state\.json cannot be used: .*--overwrite"):
        await rank(source, target)


async def test_two_runs_do_not_write_the_same_output(tmp_path: Path, engine: FakeEngine) -> None:
    source, target = write(tmp_path / "in.jsonl", rows(50)), tmp_path / "out.jsonl"
    engine.gate.clear()
    running = asyncio.create_task(rank(source, target, engine))
    await until(lambda: engine.entered > 0)
    with pytest.raises(UnwritableOutput, match="Another run is writing"):
        await rank(source, target)
    engine.gate.set()
    assert (await running).counts.rows == 50


async def test_rows_wait_while_the_engine_is_loaded_again(tmp_path: Path, engine: FakeEngine) -> None:
    source = write(tmp_path / "in.jsonl", rows(300))
    await rank(source, tmp_path / "expected")
    engine.failure = EngineBroken("broken")
    running = asyncio.create_task(rank(source, tmp_path / "out", engine))
    await until(lambda: engine.entered > 0)
    engine.failure = None
    assert (await running).counts.bad == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


async def test_passages_inside_documents_are_not_lost_while_the_engine_is_loaded_again(
    tmp_path: Path, engine: FakeEngine
) -> None:
    row = {"query": "moon", "documents": ["Bread. The moon rises. Butter."], "max_spans": 1}
    source = write(tmp_path / "in.jsonl", [row])
    score = engine.score

    def broken_once(pairs: Sequence[Pair]) -> list[float]:
        """The first batch has the document, the second one has passages."""
        if engine.entered == 1:
            engine.entered += 1
            raise EngineBroken("broken")
        return score(pairs)

    engine.score = broken_once  # type: ignore[method-assign]
    await rank(source, tmp_path / "out.jsonl", engine)
    [[result]] = [line["results"] for line in read(tmp_path / "out.jsonl")]
    assert [span["text"] for span in result["spans"]] == ["The moon rises."]


async def test_an_engine_that_stays_broken_ends_the_run(tmp_path: Path, engine: FakeEngine) -> None:
    source, target = write(tmp_path / "in.jsonl", rows(300)), tmp_path / "out.jsonl"
    engine.failure = EngineBroken("broken")
    with pytest.raises(EngineBroken, match="could not be loaded again"):
        await rank(source, target, engine, settings={"max_reloads": 0})
    assert not target.exists()


async def test_batches_are_filled_across_rows(tmp_path: Path, engine: FakeEngine) -> None:
    engine.seconds_per_token = 5e-5  # the next batch is filled while one runs
    await rank(write(tmp_path / "in.jsonl", rows(1000, documents=1)), tmp_path / "out.jsonl", engine)
    full = engine.schedule.batch_tokens // 16
    sizes = [len(batch) for batch in engine.batches if len(batch) > 1]
    assert sizes.count(full) > 0.8 * len(sizes)


async def test_an_engine_that_splits_batches_gets_larger_ones(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has more lengths to choose from. The first batches show how fast it is."""
    monkeypatch.setattr("app.bulk.run.CHECKPOINT_SECONDS", 0.0)
    engine.info, engine.seconds_per_token = replace(engine.info, splits=True), 5e-5
    await rank(write(tmp_path / "in.jsonl", rows(3000, documents=1)), tmp_path / "out.jsonl", engine)
    tokens = [sum(batch) for batch in engine.batches if len(batch) > 1]
    assert max(tokens[:2]) <= engine.schedule.batch_tokens
    assert max(tokens) > 2 * engine.schedule.batch_tokens


MEASURED = """
import asyncio, json, sys
from pathlib import Path
from app.bulk.cluster import ClusterJob, shares
from app.bulk.command import ALONE
from app.bulk.job import Job
from app.config import Settings
from app.engines.schedule import Schedule
from tests.fakes import FakeEngine

engine = FakeEngine()
engine.schedule = Schedule(batch_tokens=1024)
job = Job(Path(sys.argv[1]), Path(sys.argv[2]), {}, ["id"])
asyncio.run(job.run(Settings(**ALONE, cache_max_entries=1000), engine))
# Not the peak of `getrusage`: that includes the process that started this one.
[peak] = [line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")]
print(json.dumps([job.counts.rows, int(peak) * 1024]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    lines = rows(2000, documents=2, words=600)
    peaks = []
    for count in (300, 2000):
        source = write(tmp_path / f"{count}.jsonl", lines[:count])
        command = [sys.executable, "-c", MEASURED, str(source), str(tmp_path / f"{count}.out")]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=TERMINAL)
        assert found.returncode == 0, found.stderr
        ranked, peak = json.loads(found.stdout)
        assert ranked == count
        peaks.append(peak)
    # The larger file has 17 MB: the memory is that of a window of it.
    assert peaks[1] - peaks[0] < 8e6


def start(source: Path, target: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "bulk", str(source), str(target), *options],
        cwd=ROOT,
        env=TERMINAL | FIXED,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupted(source: Path, target: Path, number: signal.Signals, after: int) -> tuple[int, str]:
    """Exit status and messages of a run that gets a signal after a checkpoint with this many rows."""
    process = start(source, target)
    state = target.with_name(target.name + ".state.json")
    while process.poll() is None and not (state.exists() and json.loads(state.read_text())["counts"]["rows"] >= after):
        time.sleep(0.02)
    process.send_signal(number)
    messages = process.communicate()[1]
    return process.returncode, messages


def finished(source: Path, target: Path) -> dict[str, Any]:
    """The totals of a run that is not interrupted. Its input has a bad row."""
    process = start(source, target, "--json")
    printed, messages = process.communicate()
    assert process.returncode == 3, messages
    return dict(json.loads(printed))


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_killed_run_continues_with_the_same_command(tmp_path: Path) -> None:
    lines: list[Any] = rows(120, documents=8, words=30)
    lines[5:5] = ["not json"]
    source, whole, target = write(tmp_path / "in.jsonl", lines), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    expected = finished(source, whole)
    assert interrupted(source, target, signal.SIGKILL, 1)[0] == -signal.SIGKILL
    assert not target.exists()
    status, messages = interrupted(source, target, signal.SIGINT, 40)
    assert status == 130
    assert "Continuing after " in messages
    assert "Run the same command again to continue." in messages
    assert "Traceback" not in messages
    figures = finished(source, target)
    assert target.read_bytes() == whole.read_bytes()
    assert target.with_name("out.jsonl.bad.jsonl").read_bytes() == whole.with_name("whole.jsonl.bad.jsonl").read_bytes()
    assert figures["continued_after_rows"] >= 40
    totals = ("rows", "bad", "documents", "pairs", "tokens", "cached", "truncated")
    assert {name: figures[name] for name in totals} == {name: expected[name] for name in totals}
    assert (figures["rows"], figures["bad"], figures["documents"]) == (120, 1, 960)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{in}", "{in}"), "must not be the input"),
        (("{in}", "{in}.parquet"), "must be JSONL"),
        (("{in}", "{in}.d/out.jsonl"), "does not exist"),
        (("{in}", "{in}.out", "--fusion", "magic"), "fusion: should be 'off', 'lexical'"),
        (("{in}.missing", "{in}.out"), "does not exist"),
        (("/dev/null", "{in}.out"), "must be a file"),
        (("{in}", "{in}.out", "--actors", "2"), "needs --ray"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    source = write(tmp_path / "in.jsonl", rows(1))
    found = reranker("bulk", *(argument.replace("{in}", str(source)) for argument in arguments))
    assert found.exit_code == 2
    assert message in found.stderr


async def test_ray_without_the_extra_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    job = ClusterJob(write(tmp_path / "in.jsonl", rows(1)), tmp_path / "out.jsonl", {}, KEPT)
    with pytest.raises(StartupError, match=r"--ray needs the extra: pip install '\.\[ray\]'"):
        await job.run(Settings(**ALONE))


@pytest.mark.parametrize(
    ("nodes", "settings", "actors", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], {}, None, (2, {"num_cpus": 4.0})),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {}, 4, (4, {"num_cpus": 4.0})),
        ([{"CPU": 8.0}], {"threads": 2}, 4, (4, {"num_cpus": 2.0})),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {}, None, (2, {"num_gpus": 1.0})),
        ([{"CPU": 8.0, "GPU": 2.0}], {"device": "cpu"}, None, (1, {"num_cpus": 8.0})),
    ],
)
def test_engines_on_ray_share_the_cluster(
    nodes: list[dict[str, float]], settings: dict[str, Any], actors: int | None, expected: tuple[int, dict[str, float]]
) -> None:
    assert shares(nodes, Settings(**settings), actors) == expected


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        ([{"CPU": 4.0}], {"threads": 2}, "--actors: the cluster has room for 2 processes with 2 CPUs each, not for 3"),
        ([{"CPU": 4.0, "GPU": 1.0}], {}, "--actors: the cluster has 1 GPUs, and each process needs one"),
        ([{"CPU": 4.0}], {"device": "cuda"}, "--actors: the cluster has 0 GPUs"),
        ([{}], {}, "No node of the cluster has a CPU"),
    ],
)
def test_engines_that_do_not_fit_into_the_cluster_are_refused(
    nodes: list[dict[str, float]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=re.escape(message)):
        shares(nodes, Settings(**settings), 3)
