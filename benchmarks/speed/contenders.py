"""What `scripts/bench compare` compares: this service with each engine, other servers, and libraries.

Each contender runs in a separate process and environment, on the same cores and with the same model.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from benchmarks.shapes import SHAPES
from benchmarks.workspace import WORK, environment, exported, identity

START_SECONDS = 600
LINE_LIMIT = 2**26

# FlashRank loads only models that it knows by name, so our weights get this name.
FLASHRANK_NAME, FLASHRANK_FILE = "ms-marco-MiniLM-L-12-v2", "flashrank-MiniLM-L-12-v2_Q.onnx"


class Contender(Protocol):
    """Something that ranks documents between `start` and `stop`."""

    name: str
    is_server: bool
    """Whether it accepts concurrent requests."""

    def start(self) -> float:
        """Start it; returns the seconds until it was ready."""
        ...

    async def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """A score for each document, in order."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...

    def peak_memory(self) -> int:
        """Peak resident memory in bytes."""
        ...

    def stop(self) -> None: ...


class ContenderDied(Exception):
    """The process ended during a request, usually because it ran out of memory."""


def _peak_memory(process: "subprocess.Popen[Any] | None") -> int:
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@dataclass
class Server:
    """A server that listens on the loopback interface."""

    name: str
    command: Callable[[int], list[str]]
    path: str
    ready: str
    body: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    is_server: bool = True
    _process: "subprocess.Popen[bytes] | None" = None
    _client: httpx.AsyncClient | None = None

    def start(self) -> float:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        started = time.perf_counter()
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"} | self.environment
        self._process = subprocess.Popen(self.command(port), env=environment, stdout=subprocess.DEVNULL)
        while not _answers(url + self.ready):
            if self._process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                raise RuntimeError(f"{self.name} did not start")
            time.sleep(0.02)
        self._client = httpx.AsyncClient(base_url=url, timeout=3600, trust_env=False)
        return time.perf_counter() - started

    async def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        assert self._client is not None
        body = {"query": query, "documents": list(documents), **self.body}
        response = (await self._client.post(self.path, json=body)).raise_for_status()
        scores = [0.0] * len(documents)
        for result in response.json()["results"]:
            scores[result["index"]] = result["relevance_score"]
        return scores

    async def close(self) -> None:
        assert self._client is not None
        await self._client.aclose()

    def peak_memory(self) -> int:
        return _peak_memory(self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


@dataclass
class Library:
    """A library in a worker process. It gets one request at a time."""

    name: str
    python: Path
    library: str
    model: Path
    is_server: bool = False
    _process: "subprocess.Popen[str] | None" = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def start(self) -> float:
        started = time.perf_counter()
        command = [str(self.python), str(Path(__file__).with_name("worker.py")), self.library, str(self.model)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._answer().strip() != "ready":
            raise RuntimeError(f"{self.name} did not start")
        return time.perf_counter() - started

    async def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._turn:
            print(json.dumps({"query": query, "documents": list(documents)}), file=self._process.stdin, flush=True)
            line = await asyncio.to_thread(self._answer)
        if not line:
            raise ContenderDied(f"{self.name} ended during a request")
        scores: list[float] = json.loads(line)
        return scores

    async def close(self) -> None:
        pass

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def peak_memory(self) -> int:
        return _peak_memory(self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # closes the pipes


def service_of(model: Path, backend: Any, precision: Any) -> Server:
    if model.name in SHAPES and backend != "torch":
        model = exported(model, backend, precision)
    settings = {"RERANKER_MODEL": str(model), "RERANKER_BACKEND": backend, "RERANKER_PRECISION": precision}
    # The others cut long documents at the window, too.
    settings |= {"RERANKER_LONG_DOCUMENTS": "truncate"}
    settings |= {"RERANKER_LOG_LEVEL": "warning", "RERANKER_QUEUE_TIMEOUT": "3600"}
    return Server(
        name=f"reranker, {backend} {precision}",
        command=lambda port: ["env", f"RERANKER_PORT={port}", sys.executable, "-m", "app"],
        path="/rerank/query",
        ready="/health/ready",
        environment=settings,
    )


def _infinity(model: Path) -> Server:
    program = environment("infinity").with_name("infinity_emb")
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--log-level", "error"]
    return Server(
        name="Infinity, torch",
        command=lambda port: [str(program), "v2", "--model-id", str(model), "--port", str(port), *options],
        path="/rerank",
        ready="/health",
        # Infinity calls a local model by the last two parts of its path.
        body={"model": "/".join(model.parts[-2:])},
    )


def _flashrank(model: Path) -> Library:
    folder = WORK / "models" / f"{identity(model)}-flashrank" / FLASHRANK_NAME
    if not folder.exists():
        shutil.copytree(exported(model, "onnx", "int8"), folder)
        (folder / "model.onnx").rename(folder / FLASHRANK_FILE)
    return Library("FlashRank, int8", environment("flashrank"), "flashrank", folder)


CONTENDERS: dict[str, Callable[[Path], Contender]] = {
    "openvino-int8": lambda model: service_of(model, "openvino", "int8"),
    "openvino-bf16": lambda model: service_of(model, "openvino", "bf16"),
    "onnx-int8": lambda model: service_of(model, "onnx", "int8"),
    "torch-fp32": lambda model: service_of(model, "torch", "fp32"),
    "torch-bf16": lambda model: service_of(model, "torch", "bf16"),
    "predict": lambda model: Library("CrossEncoder.predict, torch", Path(sys.executable), "torch", model),
    "predict-onnx": lambda model: Library(
        "CrossEncoder.predict, onnx", environment("sentence-transformers"), "onnx", model
    ),
    "predict-openvino": lambda model: Library(
        "CrossEncoder.predict, openvino", environment("sentence-transformers"), "openvino", model
    ),
    "infinity": _infinity,
    "flashrank": _flashrank,
    "fastembed": lambda model: Library(
        "fastembed, fp32", environment("fastembed"), "fastembed", exported(model, "onnx", "fp32")
    ),
}


def make_contender(name: str, model: Path) -> Contender:
    """Create a contender by name. `openvino-int8:512` is `openvino-int8` with batches of 512 tokens."""
    name, _, batch_tokens = name.partition(":")
    chosen = CONTENDERS[name](model)
    if batch_tokens:
        assert isinstance(chosen, Server), f"{name} does not accept a batch size"
        chosen.name += f", batches of {batch_tokens}"
        chosen.environment["RERANKER_BATCH_TOKENS"] = batch_tokens
    return chosen


@contextlib.contextmanager
def running(contenders: Sequence[Contender]) -> Any:
    """Start all contenders in turn; yields the seconds that each took to start, by name."""
    try:
        yield {contender.name: contender.start() for contender in contenders}
    finally:
        for contender in contenders:
            contender.stop()
