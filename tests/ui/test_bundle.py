"""The committed page is what scripts/ui makes of web/."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.process import ROOT

PAGE = ROOT / "app" / "ui"
OURS = ["app.css", "app.js", "icon.svg", "index.html"]
MAX_GZIPPED_BYTES = 150_000


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_the_committed_bundle_is_up_to_date(tmp_path: Path) -> None:
    installed = subprocess.run(["scripts/ui", "modules"], cwd=ROOT, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"The modules of web/ cannot be installed: {installed.stderr[-200:]}")
    subprocess.run(["scripts/ui", "build", str(tmp_path)], cwd=ROOT, check=True)
    for name in OURS:
        assert (tmp_path / name).read_bytes() == (PAGE / name).read_bytes(), f"{name} is out of date: run scripts/ui"


def test_only_our_own_files_are_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "app/ui"], cwd=ROOT, capture_output=True, text=True, check=True)
    committed = [Path(name).name for name in listed.stdout.split()]
    assert committed in ([], OURS)  # a copy without git has no list


def test_the_page_names_no_other_host() -> None:
    text = "".join((PAGE / name).read_text() for name in OURS)
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"www.w3.org", "127.0.0.1"}  # a namespace, and the placeholder of the second service
    lock = (ROOT / "web" / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "://" not in lock


def test_the_page_is_small() -> None:
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) <= MAX_GZIPPED_BYTES
