"""The limits of control groups, as systemd, LXC, Docker and Kubernetes set them."""

from pathlib import Path

import pytest

from app.machine.hardware import cpu_limit, memory_limit

QUOTA = {"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}
SERVICE, SCOPE = "system.slice/reranker.service", "machine.slice/lxc-1.scope/payload"


def layout(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "100000 100000\n"}, 1, id="a container"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="half a core"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="no quota"),
        pytest.param("0::/\n", {}, None, id="no files"),
        pytest.param(f"0::/{SERVICE}\n", {f"{SERVICE}/cpu.max": "100000 100000\n"}, 1, id="a service of systemd"),
        pytest.param(f"0::/{SERVICE}\n", {"system.slice/cpu.max": "300000 100000\n"}, 3, id="its slice"),
        pytest.param(
            f"0::/{SCOPE}\n",
            {f"{SCOPE}/cpu.max": "max 100000\n", "machine.slice/lxc-1.scope/cpu.max": "250000 100000\n"},
            2,
            id="a container of LXC",
        ),
        pytest.param(
            f"0::/{SERVICE}\n",
            {f"{SERVICE}/cpu.max": "400000 100000\n", "system.slice/cpu.max": "200000 100000\n"},
            2,
            id="the smallest",
        ),
        pytest.param("0::/other.slice\n", {f"{SERVICE}/cpu.max": "100000 100000\n"}, None, id="another group"),
        pytest.param("1:cpu:/\n", {f"cpu/{name}": quota for name, quota in QUOTA.items()}, 1, id="version 1"),
        pytest.param(
            "1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"}, None, id="version 1, no quota"
        ),
        pytest.param(
            f"5:memory:/\n4:cpu,cpuacct:/{SERVICE}\n",
            {f"cpu/{SERVICE}/{name}": quota for name, quota in QUOTA.items()},
            1,
            id="version 1, a service",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/0ac8\n",
            {f"cpu/{name}": quota for name, quota in QUOTA.items()},
            1,
            id="version 1, a container that sees its path on the host",
        ),
    ],
)
def test_threads_default_to_the_cpu_limit_of_the_group_and_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], cores: int | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    groups = layout(tmp_path, files | {"membership": membership})
    assert cpu_limit(groups, groups / "membership") == (cores or 16)


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        pytest.param("0::/\n", {"memory.max": "1000000\n"}, 1_000_000, id="a container"),
        pytest.param(f"0::/{SERVICE}\n", {f"{SERVICE}/memory.max": "1000000\n"}, 1_000_000, id="a service of systemd"),
        pytest.param(
            f"0::/{SCOPE}\n",
            {f"{SCOPE}/memory.max": "max\n", "machine.slice/memory.max": "2000000\n"},
            2_000_000,
            id="the slice of a container",
        ),
        pytest.param(
            f"4:memory:/{SERVICE}\n",
            {
                f"memory/{SERVICE}/memory.limit_in_bytes": "3000000\n",
                "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
            },
            3_000_000,
            id="version 1, a service",
        ),
        pytest.param("0::/\n", {"memory.max": "max\n"}, None, id="no limit"),
    ],
)
def test_the_memory_limit_is_that_of_the_group_and_its_parents(
    tmp_path: Path, membership: str, files: dict[str, str], limit: int | None
) -> None:
    groups = layout(tmp_path, files | {"membership": membership})
    machine = memory_limit(tmp_path / "none", tmp_path / "none")
    assert machine > 10_000_000
    assert memory_limit(groups, groups / "membership") == (limit or machine)


def test_a_process_without_control_groups_may_use_the_whole_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    assert cpu_limit(tmp_path / "none", tmp_path / "none") == 5
