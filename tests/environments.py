"""Virtual environments apart from the project's own, for programs with requirements that conflict with it."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from uv import find_uv_bin


def environment(name: str, requirements: Sequence[str], alone: Sequence[str] = ()) -> Path:
    """The environment's folder, which is created on first use. Raises `CalledProcessError`.

    `name` may contain a slash. `alone`: packages to install without their dependencies.
    """
    folder = Path(sys.prefix) / name
    stamp, wanted = folder / ".installed", repr((*requirements, *alone))
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not stamp.exists() or stamp.read_text() != wanted:
            venv.create(folder, clear=True)
            # uv is much faster than pip. The system's certificates may include that of a proxy; uv's own do not.
            python = folder / "bin" / "python"
            install = [find_uv_bin(), "pip", "install", "--quiet", "--system-certs", "--python", python]
            for packages in (requirements, ["--no-deps", *alone] if alone else []):
                if packages:
                    subprocess.run([*install, *packages], check=True, capture_output=True, text=True)
            stamp.write_text(wanted)
    return folder
