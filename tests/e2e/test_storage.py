"""Folders that cannot be written, and full disks: one line with the remedy, or the service works without them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port
from tests.e2e.process import FIXED, MOONS, service, start
from tests.hub import serve
from tests.models import make_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

USER = f"by user {os.geteuid()}"
OWNER = 65534
# Without these, root obeys the permissions of files like any other user.
CAPABILITIES = "--bounding-set=-dac_override,-dac_read_search,-fowner"
ORDINARY = ("setpriv", CAPABILITIES)
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and change owners")
has_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small file system with the options of the parameter."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def error_line(*before: str, **settings: object) -> str:
    """The only line of a start that fails, except for information."""
    process = start(free_port(), *before, **settings)
    _, errors = process.communicate(timeout=240)
    lines = [line for line in errors.splitlines() if " INFO " not in line and "WARNING" not in line]
    assert (process.returncode, len(lines)) == (1, 1), errors
    return lines[0]


@pytest.mark.parametrize("setting", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_hub_cache_that_cannot_be_written_is_named(tmp_path: Path, model: Path, setting: str) -> None:
    place = tmp_path / "a file"
    place.touch()
    with serve(model) as hub:
        where = {setting: str(place)}
        line = error_line(RERANKER_MODEL="owner/tiny", RERANKER_BACKEND="torch", HF_ENDPOINT=hub.url, **where)
    assert f"Cannot start: {setting}={place} cannot be written {USER}: " in line
    assert line.endswith("Make the folder writable for this user, or set another one")


@is_root
@has_setpriv
def test_the_owner_of_the_folder_is_named(tmp_path: Path, model: Path) -> None:
    """As for an arbitrary user id and a volume of somebody else."""
    for name in ("hub", "store"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, OWNER, OWNER)
    owner = f"Permission denied ({{}} belongs to user {OWNER} and group {OWNER}, mode 755). Make the folder writable"
    with serve(model) as hub:
        place = tmp_path / "hub"
        options = {"RERANKER_MODEL": "owner/tiny", "RERANKER_BACKEND": "torch", "HF_ENDPOINT": hub.url}
        line = error_line(*ORDINARY, HF_HOME=place, **options)
        assert f"HF_HOME={place} cannot be written {USER}: {owner.format(place)}" in line
    place = tmp_path / "store" / "exports"
    line = error_line(*ORDINARY, RERANKER_MODEL=model, RERANKER_EXPORT_DIR=place)
    assert f"RERANKER_EXPORT_DIR={place} cannot be written {USER}: {owner.format(place.parent)}" in line


@is_root
@pytest.mark.parametrize("disk", ["ro"], indirect=True)
def test_a_read_only_file_system_is_named(disk: Path, model: Path) -> None:
    remedy = "Read-only file system. Mount a writable volume there, or set another folder"
    with serve(model) as hub:
        line = error_line(RERANKER_MODEL="owner/tiny", RERANKER_BACKEND="torch", HF_ENDPOINT=hub.url, HF_HOME=disk)
    assert f"HF_HOME={disk} cannot be written {USER}: {remedy}" in line
    line = error_line(RERANKER_MODEL=model, RERANKER_EXPORT_DIR=disk / "exports")
    assert f"RERANKER_EXPORT_DIR={disk / 'exports'} cannot be written {USER}: {remedy}" in line


@is_root
@pytest.mark.parametrize("disk", ["size=60k"], indirect=True)
def test_a_full_disk_is_named_in_a_download(disk: Path, model: Path) -> None:
    with serve(model) as hub:
        line = error_line(RERANKER_MODEL="owner/tiny", RERANKER_BACKEND="torch", HF_ENDPOINT=hub.url, HF_HOME=disk)
    assert f"HF_HOME={disk} cannot be written {USER}: No space left on device. Free some space" in line


@is_root
@pytest.mark.parametrize("disk", ["size=60k"], indirect=True)
def test_a_full_disk_stops_an_export_and_is_not_remembered(disk: Path, model: Path) -> None:
    """With torch the service would be slow, also after there is space again."""
    line = error_line(RERANKER_MODEL=model, RERANKER_EXPORT_DIR=disk, RERANKER_PRECISION="fp32")
    assert f"RERANKER_EXPORT_DIR={disk} cannot be written {USER}: No space left on device. Free some space" in line
    assert not list(disk.glob("*.failed"))


@is_root
@has_setpriv
def test_the_embedded_model_needs_no_folder(tmp_path: Path) -> None:
    """The folder of exports is below one that this user may not look into, as /root for other users."""
    closed = tmp_path / "closed"
    (closed / "store").mkdir(parents=True)
    closed.chmod(0o700)
    os.chown(closed, OWNER, OWNER)
    with service(*ORDINARY, **FIXED, RERANKER_EXPORT_DIR=closed / "store", HF_HOME=closed / "hub") as (url, _):
        assert httpx.post(f"{url}/rerank", json=MOONS, timeout=60).json()["results"][0]["index"] == 2
