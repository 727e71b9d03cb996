"""Folders that the service writes to, and the failures of writing to them."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import StartupError, UnwritableFolder

FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
# Libraries in Rust have no `errno`.
FULL_IN_WORDS = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
# Less than this is free: OpenVINO's error does not say that the disk is full.
FULL_BYTES = 2**20


@contextmanager
def storing_in(folder: Path, setting: str | None = None, measures: bool = False) -> Iterator[None]:
    """Raises `UnwritableFolder` if the block fails because it cannot write to the folder or the disk is full.

    `setting`: what decides the folder, for the message. `measures`: any failure on a full disk counts, because not
    every library gives the reason.
    """
    try:
        yield
    except StartupError:
        raise
    except Exception as error:  # libraries wrap an OSError, or raise their own
        cause = _failure_to_write(error, folder)
        if cause is None and measures and _is_full(folder):
            cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if cause:
            raise UnwritableFolder(setting or str(folder), cause, folder) from error
        raise


@contextmanager
def storing_in_hub_cache() -> Iterator[None]:
    """`storing_in` for downloads from the hub."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    home, cache = Path(HF_HOME), Path(HF_HUB_CACHE)
    is_below = cache.is_relative_to(home)
    with storing_in(home if is_below else cache, f"HF_HOME={home}" if is_below else f"HF_HUB_CACHE={cache}"):
        yield


def check_hub_cache() -> None:
    """Raises `OSError` if nothing can be downloaded. The libraries would report that the hub is not reachable."""
    from huggingface_hub.constants import HF_HUB_CACHE

    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=HF_HUB_CACHE).close()


def _failure_to_write(error: BaseException, folder: Path) -> OSError | None:
    """The error of the system behind an error of a library. None if it has another cause."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            is_below = isinstance(found.filename, str) and Path(found.filename).is_relative_to(folder)
            if found.errno in FULL or (is_below and found.errno in NOT_ALLOWED):
                return found
        if FULL_IN_WORDS.search(str(found)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        found = found.__cause__ or found.__context__
    return None


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False
