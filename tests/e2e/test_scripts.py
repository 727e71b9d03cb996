"""The shell scripts against a running service."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port
from tests.e2e.process import MOONS, ROOT
from tests.pages.reader import check_self_contained, read
from tests.test_docs import documented_profiles

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (ROOT / ".venv/.installed").exists(), reason="scripts/setup has not created .venv"),
]


class Checkout:
    """A folder with copies of the scripts and links to the code and the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        for name in ("start_reranker.sh", "manage_reranker.sh", "performance_test.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        for name in ("app", "benchmarks", ".venv"):
            (folder / name).symlink_to(ROOT / name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, **settings: object) -> dict[str, str]:
        return os.environ | {"RERANKER_PORT": str(self.port)} | {name: str(value) for name, value in settings.items()}

    def run(self, *command: str, **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(**settings), capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with a running daemon."""
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    started = made.run("./start_reranker.sh", "daemon")
    assert started.returncode == 0, started.stderr
    assert "Installing" not in started.stderr
    assert f"Listening on {made.url}" in started.stdout
    assert "device cpu, backend openvino" in started.stdout
    yield made
    made.run("./manage_reranker.sh", "stop")


def test_the_daemon_ranks_and_logs(checkout: Checkout) -> None:
    response = httpx.post(f"{checkout.url}/rerank", json=MOONS, timeout=60)
    assert response.json()["results"][0]["index"] == 2
    line = f"id={response.json()['id']}"
    # The service writes it after it has sent the answer.
    while line not in (checkout.folder / "reranker.log").read_text():
        time.sleep(0.05)
    logged = checkout.run("./manage_reranker.sh", "logs")
    assert logged.returncode == 0
    assert line in logged.stdout
    assert logged.stdout == (checkout.folder / "reranker.log").read_text()


@pytest.mark.parametrize("mode", ["fg", "daemon"])
def test_a_second_start_is_rejected(checkout: Checkout, mode: str) -> None:
    second = checkout.run("./start_reranker.sh", mode)
    assert second.returncode == 1
    assert "Already running with pid" in second.stderr


def test_a_port_in_use_is_reported(checkout: Checkout, tmp_path: Path) -> None:
    other = Checkout(tmp_path)
    other.port = checkout.port
    started = other.run("./start_reranker.sh", "daemon")
    assert started.returncode == 1
    assert f"Another program already responds on {checkout.url}" in started.stderr


def test_status_health_and_metrics(checkout: Checkout) -> None:
    status = checkout.run("./manage_reranker.sh", "status")
    assert status.returncode == 0
    assert "Running with pid" in status.stdout
    assert '"status": "ok"' in status.stdout
    health = checkout.run("./manage_reranker.sh", "health")
    assert json.loads(health.stdout)["status"] == "ok"
    metrics = checkout.run("./manage_reranker.sh", "metrics")
    assert "success_rate" in json.loads(metrics.stdout)["requests"]


def test_tail_follows_the_log(checkout: Checkout) -> None:
    tail = subprocess.Popen(
        ["./manage_reranker.sh", "tail"],
        cwd=checkout.folder,
        env=checkout.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert tail.stdout is not None
    try:
        httpx.post(f"{checkout.url}/rerank", json=MOONS, headers={"x-request-id": "look-for-me"}, timeout=60)
        assert any("look-for-me" in line for line in tail.stdout)
    finally:
        os.killpg(tail.pid, signal.SIGTERM)
        tail.communicate()


def test_restart_applies_new_settings(checkout: Checkout) -> None:
    # The service accepts a timeout of 08.5; shell arithmetic would not.
    for settings in ({"RERANKER_MAX_PARALLEL": 6, "RERANKER_SHUTDOWN_TIMEOUT": "08.5"}, {"RERANKER_MAX_PARALLEL": 7}):
        restarted = checkout.run("./manage_reranker.sh", "restart", **settings)
        assert restarted.returncode == 0, restarted.stderr
        assert "Stopped." in restarted.stdout
        assert httpx.get(f"{checkout.url}/health").json()["max_parallel"] == settings["RERANKER_MAX_PARALLEL"]


def test_status_finds_the_port_of_the_service(checkout: Checkout) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RERANKER_PORT"}
    status = subprocess.run(
        ["./manage_reranker.sh", "status"],
        cwd=checkout.folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert status.returncode == 0
    assert checkout.url in status.stdout


def test_the_scripts_send_the_api_key(tmp_path: Path) -> None:
    made = Checkout(tmp_path)
    keys = {"RERANKER_API_KEYS": "s3cret", "RERANKER_PROTECT_METRICS": "true"}
    assert made.run("./start_reranker.sh", "daemon", **keys).returncode == 0
    commands = [
        ["./manage_reranker.sh", "metrics"],
        ["./performance_test.sh", "metrics"],
        ["./performance_test.sh", "load", "--requests=2", "--documents=2"],
    ]
    try:
        for command in commands:
            assert "401" in str(made.run(*command))
            answered = made.run(*command, RERANKER_API_KEY="s3cret")
            assert answered.returncode == 0, answered.stderr
    finally:
        made.run("./manage_reranker.sh", "stop")


def test_a_restart_with_invalid_settings_leaves_the_service_running(checkout: Checkout) -> None:
    restarted = checkout.run("./manage_reranker.sh", "restart", RERANKER_MAX_PARALLEL="none")
    assert restarted.returncode == 1
    assert "RERANKER_MAX_PARALLEL='none' is not valid" in restarted.stderr
    assert httpx.get(f"{checkout.url}/health").status_code == 200


def test_the_scripts_ignore_a_proxy_in_the_environment(checkout: Checkout) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    assert checkout.run("./manage_reranker.sh", "health", http_proxy=proxy).returncode == 0
    assert checkout.run("./performance_test.sh", "metrics", http_proxy=proxy).returncode == 0


@pytest.mark.parametrize("script", ["start_reranker.sh", "manage_reranker.sh", "performance_test.sh"])
def test_help_exits_with_status_0(checkout: Checkout, script: str) -> None:
    asked = checkout.run(f"./{script}", "--help")
    assert asked.returncode == 0
    assert script in asked.stdout


SMALL = ["--documents=3", "--words=5-20"]


@pytest.mark.parametrize(
    "command",
    [
        ["load", "--requests=6", "--concurrency=3"],
        ["latency", "--warmup=1", "--requests=4"],
        ["stress", "--max-concurrency=3", "--requests=2"],
    ],
)
def test_performance_test_prints_a_table_or_json(checkout: Checkout, tmp_path: Path, command: list[str]) -> None:
    table = checkout.run("./performance_test.sh", *command, *SMALL, "--url", checkout.url)
    assert table.returncode == 0, table.stderr
    assert all(heading in table.stdout for heading in ("req/s", "p50 ms", "p95 ms", "p99 ms", "errors"))
    assert "100%" in table.stderr
    html = ["--html", str(tmp_path / "load.html")]
    printed = checkout.run("./performance_test.sh", *command, *SMALL, "--url", checkout.url, "--json", *html)
    figures = json.loads(printed.stdout)
    rows = figures if isinstance(figures, list) else [figures]
    document = (tmp_path / "load.html").read_text()
    check_self_contained(document)
    assert [row[6] for row in read(document).all("table")[0].rows()[1:]] == [str(row["p90_ms"]) for row in rows]
    assert [row["concurrency"] for row in rows] == {"load": [3], "latency": [1], "stress": [1, 2, 3]}[command[0]]
    assert all(row["succeeded"] == row["requests"] > 0 and row["p50_ms"] > 0 and row["errors"] == {} for row in rows)


def test_performance_test_prints_the_metrics_of_the_service(checkout: Checkout) -> None:
    table = checkout.run("./performance_test.sh", "metrics", "--url", checkout.url)
    assert table.returncode == 0
    assert "requests.success_rate" in table.stdout
    assert "requests" in json.loads(
        checkout.run("./performance_test.sh", "metrics", "--url", checkout.url, "--json").stdout
    )


@pytest.mark.parametrize("command", [["load", "--requests=2"], ["latency", "--requests=1"], ["stress"], ["metrics"]])
def test_performance_test_fails_without_a_service(checkout: Checkout, command: list[str]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert checkout.run("./performance_test.sh", *command, "--url", nowhere).returncode == 1
    if command != ["metrics"]:
        printed = json.loads(checkout.run("./performance_test.sh", *command, "--url", nowhere, "--json").stdout)
        first = printed[0] if isinstance(printed, list) else printed
        assert first["p50_ms"] is None
        assert list(first["errors"]) == ["no response (ConnectError)"]


@pytest.mark.parametrize(
    "command",
    [
        ["./start_reranker.sh", "sideways"],
        ["./start_reranker.sh", "fg", "extra"],
        ["./manage_reranker.sh"],
        ["./manage_reranker.sh", "explode"],
        ["./manage_reranker.sh", "stop", "now"],
        ["./performance_test.sh"],
        ["./performance_test.sh", "explode"],
        ["./performance_test.sh", "load", "--requests=none"],
        ["./performance_test.sh", "load", "--words=9-3"],
        ["scripts/setup", "everything"],
    ],
)
def test_invalid_arguments_print_the_usage(checkout: Checkout, command: list[str]) -> None:
    result = checkout.run(*command)
    assert result.returncode == 2
    assert command[0].lstrip("./") in result.stderr or "Usage" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("system", "libc", "name"),
    [
        ("FreeBSD amd64", "", "FreeBSD amd64"),
        ("Linux armv7l", "glibc", "Linux armv7l"),
        ("Linux x86_64", "musl libc (x86_64)", "Linux x86_64 with musl"),
    ],
)
def test_an_unsupported_system_is_reported(tmp_path: Path, system: str, libc: str, name: str) -> None:
    kernel, machine = system.split()
    for program, lines in (("uname", f'[ "$1" = -s ] && echo {kernel} || echo {machine}'), ("ldd", f"echo '{libc}'")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / program).chmod(0o755)
    ended = Checkout(tmp_path).run("scripts/setup", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (ended.returncode, ended.stderr.startswith(f"OpenVINO has no build for {name}. ")) == (1, True), ended.stderr


def test_a_failed_start_prints_the_reason_and_leaves_no_pid_file(tmp_path: Path) -> None:
    made = Checkout(tmp_path)
    started = made.run("./start_reranker.sh", "daemon", RERANKER_MODEL="/no/such/folder")
    assert started.returncode == 1
    assert "no such folder" in started.stderr
    assert not (tmp_path / "reranker.pid").exists()
    assert made.run("./manage_reranker.sh", "status").returncode == 3
    assert made.run("./manage_reranker.sh", "stop").returncode == 0
    health = made.run("./manage_reranker.sh", "health")
    assert (health.returncode, health.stdout) == (1, "")
    assert health.stderr.endswith(f"No successful response from {made.url}\n")


def test_a_rolling_restart_needs_a_docker_engine(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/bash\necho no daemon >&2\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    ended = Checkout(tmp_path).run("./manage_reranker.sh", "rolling-restart", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (ended.returncode, ended.stderr) == (1, "Docker is not running.\n")


@pytest.mark.parametrize("modes", [("daemon", "daemon"), ("fg", "daemon")])
def test_of_two_concurrent_starts_one_is_rejected(tmp_path: Path, modes: tuple[str, str]) -> None:
    made = Checkout(tmp_path)
    starts = [
        subprocess.Popen(
            ["./start_reranker.sh", mode],
            cwd=tmp_path,
            env=made.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mode in modes
    ]
    deadline = time.monotonic() + 60
    try:
        while made.run("./manage_reranker.sh", "status").returncode != 0 or all(s.poll() is None for s in starts):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (refused,) = [start for start in starts if start.poll() == 1]
        assert refused.stderr is not None
        assert re.search("Another start is in progress|Already running", refused.stderr.read())
        assert made.run("./manage_reranker.sh", "status").returncode == 0
    finally:
        # Nobody has asked for the exit status of the service in the foreground, so its pid exists until below.
        stopped = made.run("./manage_reranker.sh", "stop")
        assert (stopped.stdout, stopped.stderr) == ("Stopped.\n", "")
        for start in starts:
            start.communicate(timeout=30)


def test_a_service_in_the_foreground_stops_on_ctrl_c(tmp_path: Path) -> None:
    made = Checkout(tmp_path)
    process = subprocess.Popen(
        ["./start_reranker.sh"], cwd=tmp_path, env=made.environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("Listening on" in line for line in process.stderr)
    assert made.run("./manage_reranker.sh", "status").returncode == 0
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.communicate()


def test_a_stale_pid_file_is_ignored(tmp_path: Path) -> None:
    made = Checkout(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "/srv/myapp/app"])
    (tmp_path / "reranker.pid").write_text(f"{sleeper.pid}\n")
    try:
        assert made.run("./manage_reranker.sh", "status").returncode == 3
        made.run("./manage_reranker.sh", "stop")
        time.sleep(0.05)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


# A fake docker command. It logs its arguments to `calls` and lists replicas in `replicas`.
DOCKER = """#!/bin/bash
echo "$*" >>calls
case $* in
  *" ps -q replica") cat replicas ;;
  *" ps -q proxy") echo "$PROXY" ;;
  *" --check") exit "$CHECK" ;;
  *" up "*) echo new >>replicas ;;
  "inspect --format {{.State.Status}}"*) echo "$STATE" ;;
  inspect*) echo 10.0.0.1 ;;
  logs*) echo "what went wrong" ;;
  rm*) sed -i "/^${!#}$/d" replicas ;;
esac
"""


@pytest.mark.parametrize(
    ("check", "state", "left", "status"),
    [
        (0, "running 0 healthy", "new\n", 0),
        (0, "restarting 1 starting", "old\n", 1),
        (0, "exited 0 unhealthy", "old\n", 1),
        (1, "running 0 healthy", "old\n", 1),
    ],
)
def test_a_rolling_restart_stops_at_the_first_failure(
    tmp_path: Path, check: int, state: str, left: str, status: int
) -> None:
    made = Checkout(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)
    (tmp_path / "replicas").write_text("old\n")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    ended = made.run(
        "timeout", "60", "./manage_reranker.sh", "rolling-restart", PATH=path, CHECK=check, STATE=state, PROXY="id"
    )
    calls = (tmp_path / "calls").read_text()
    assert (ended.returncode, (tmp_path / "replicas").read_text()) == (status, left)
    assert ("what went wrong" in ended.stderr) == (status == 1 and check == 0)
    assert (" up " in calls, calls.endswith("leaving sh none\n")) == (check == 0, check == 0)


def test_a_rolling_restart_behind_haproxy_needs_no_nginx(tmp_path: Path) -> None:
    made = Checkout(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)
    (tmp_path / "replicas").write_text("old\n")
    settings = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CHECK": 0, "STATE": "running 0 healthy", "PROXY": ""}
    ended = made.run("timeout", "60", "./manage_reranker.sh", "rolling-restart", **settings)
    assert (ended.returncode, (tmp_path / "replicas").read_text()) == (0, "new\n")
    assert "leaving" not in (tmp_path / "calls").read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(3), ids=["high throughput", "cpu", "memory-constrained"])
def test_the_documented_profiles_start(tmp_path: Path, number: int) -> None:
    made, profile = Checkout(tmp_path), documented_profiles()[number]
    if profile.get("RERANKER_DEVICE") == "cuda":
        profile["RERANKER_DEVICE"] = "auto"  # tests the rest of the profile without a GPU too
    started = made.run("./manage_reranker.sh", "start", **profile)
    assert started.returncode == 0, started.stderr
    health = httpx.get(f"{made.url}/health").json()
    assert health["max_parallel"] == int(profile["RERANKER_MAX_PARALLEL"])
    assert health["compiled"] == (profile.get("ENABLE_TORCH_COMPILE") == "true")
    assert made.run("./manage_reranker.sh", "stop").stdout == "Stopped.\n"
