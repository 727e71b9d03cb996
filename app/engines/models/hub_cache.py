"""The folder in which huggingface_hub keeps what it downloads."""

import errno

from app.errors import UnwritableFolder

CANNOT_BE_WRITTEN = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
}


def unwritable_cache(error: BaseException) -> UnwritableFolder | None:
    """The error to report if a download failed because the folder cannot be written; None for other failures.

    Libraries wrap the operating system's error in others, which say nothing about the remedy.
    """
    from huggingface_hub.constants import HF_HOME

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in CANNOT_BE_WRITTEN:
            return UnwritableFolder(f"HF_HOME={HF_HOME} (the cache of models from the hub)", cause)
        cause = cause.__cause__ or cause.__context__
    return None
