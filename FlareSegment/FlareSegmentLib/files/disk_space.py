"""Why a file could not be written, where the library that wrote it does not say."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

NO_SPACE = "no space left on the disk"
_NOTHING_LEFT = 1 << 16  # bytes: what a writer that failed may have left of a full disk


def is_disk_full(error: BaseException) -> bool:
    """Whether the system says that the disk, or the user's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def why_not_written(folder: Path, error: BaseException) -> str:
    """The reason in words: NO_SPACE or what the system says. Ask before the part that was written is removed.

    Args:
        folder: where the file was to be; it need not exist yet.
    """
    if is_disk_full(error):
        return NO_SPACE
    number = getattr(error, "errno", None)
    if number is None and "free space" in str(error):  # NumPy's, which asks for the room before it writes
        return NO_SPACE
    if number is None:
        existing = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
        try:
            if existing is not None and shutil.disk_usage(existing).free <= _NOTHING_LEFT:
                return NO_SPACE
        except OSError:
            pass
    if not isinstance(error, OSError):  # a library's, in words for programmers
        return "the disk may be full"
    return error.strerror or str(error)
