"""The code does not need what only some operating systems have."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules of the standard library and dependencies that Windows does not have.
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}
PACKAGES = ("app", "reranker_client", "training")
FILES = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
WINDOWS = """
import importlib, os, sys
class Missing:
    def find_spec(self, name, *_):
        if name in ("resource", "grp", "pwd", "termios", "uvloop"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
for name in ("sysconf", "sched_getaffinity", "geteuid", "getuid", "getpgid", "killpg", "fork"):
    delattr(os, name)
for name in ("app.main", "app.__main__", "app.cli", "app.export.command", "app.healthcheck", "reranker_client"):
    importlib.import_module(name)
from app.api.server import _allow_files
from app.errors import UnwritableFolder
from app.machine.hardware import cpu_limit, memory_limit, peak_memory
sys.platform = "win32"
_allow_files(10**9)
print(cpu_limit() > 0, memory_limit(), peak_memory(), UnwritableFolder("a", OSError(13, "Permission denied")))
"""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_imports_what_windows_does_not_have(file: Path) -> None:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert not names & POSIX_ONLY


def test_the_service_and_its_commands_can_be_imported_on_windows() -> None:
    found = subprocess.run([sys.executable, "-c", WINDOWS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("True 0 None a cannot be written: Permission denied")
