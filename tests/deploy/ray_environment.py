"""Ray in a separate environment, which also sees the packages of the project. For the tests with real Ray."""

import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.environments import environment

ROOT = Path(__file__).parents[2]
RAY = "ray[data,serve]==2.60.0"
STARTS = 3
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray listens on the loopback only where it expects a single machine.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    # Processes start slowly while other tests run, and Ray gives its own a lower priority.
    "RAY_worker_niceness": "0",
    # Workers that Ray starts in advance are not used: those of the service have an environment of their own.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "PYTHONPATH": str(ROOT),
}


@cache
def programs() -> Path:
    """The folder with `python` and `serve`. Skips the test if Ray cannot be installed."""
    try:
        folder = environment("ray", [RAY])
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines()[-1:] or [str(error)]
        pytest.skip(f"Ray could not be installed: {reason[0]}")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


def variables(**settings: object) -> dict[str, str]:
    """The environment of a process, with only these settings of the service."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("RERANKER_", "RAY_"))}
    return found | RAY_VARIABLES | {name: str(value) for name, value in settings.items()}


class Nodes:
    """Two nodes of Ray in processes of their own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, command: str) -> Any:
        """The answer of `tests.deploy.ray_cluster`."""
        assert self._process.stdin
        assert self._process.stdout
        print(command, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the cluster has ended with status {self._process.wait()}"
        return json.loads(line)


@contextmanager
def cluster(log: Path, **settings: object) -> Iterator[Nodes]:
    """Start two nodes; `settings` reach their processes. Nothing is left afterwards."""
    with _started(log, variables(**settings)) as process:
        yield Nodes(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0, log.read_text()


def _started(log: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Ray gives up after 30 s, which may be too short on a busy machine."""
    command = [programs() / "python", "-m", "tests.deploy.ray_cluster"]
    for _ in range(STARTS):
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        assert process.stdout
        if process.stdout.readline():
            return process
        process.communicate()
    raise AssertionError(log.read_text())
