"""A command's results: files that appear in their folder together, or not at all; and why they do not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Self

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.disk_space import NO_SPACE, why_not_written
from FlareSegmentLib.processes import private_folder


class OutputFiles:
    """Files that are written in a private folder beside their final place and appear there together, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._created: list[Path] = []
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._created = [parent for parent in (self._folder, *self._folder.absolute().parents) if not parent.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._private = private_folder(self._folder)
        except OSError as error:
            self._remove_created()
            raise not_writable(self._folder, error) from error
        return self

    def path(self, kind: str, name: str) -> Path:
        """Where to write the file that will be called `name`."""
        self._names[kind] = name
        return Path(self._private.name) / name

    def drop(self, kind: str) -> None:
        """Give up a file that could not be made."""
        (Path(self._private.name) / self._names.pop(kind)).unlink(missing_ok=True)

    def publish(self) -> dict[str, str]:
        """Move all files to their place; returns {kind: path}.

        Raises InputError where that cannot be done; files that stood there before are back then.
        """
        for name in self._names.values():
            if (self._folder / name).is_dir():
                raise not_writable(self._folder / name, IsADirectoryError(errno.EISDIR, "a folder has this name"))
        kept = Path(self._private.name) / "replaced"
        kept.mkdir()
        done: list[str] = []
        try:
            for name in self._names.values():
                _keep(self._folder / name, kept / name)
                done.append(name)
                os.replace(Path(self._private.name) / name, self._folder / name)
        except OSError as error:
            for name in done:
                if (kept / name).exists():
                    os.replace(kept / name, self._folder / name)
                else:
                    (self._folder / name).unlink(missing_ok=True)
            raise not_writable(self._folder, error) from error
        self._created = []
        return {kind: str(self._folder / name) for kind, name in self._names.items()}

    def __exit__(self, *_error: object) -> None:
        self._private.cleanup()
        self._remove_created()

    def _remove_created(self) -> None:
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:
                return


def _keep(file: Path, copy: Path) -> None:
    """A second name, or a copy, of a file that will be replaced: at no moment it is gone, whatever happens."""
    if os.path.lexists(file):
        try:
            os.link(file, copy, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(file, copy, follow_symlinks=False)


def check_writable(folder: Path) -> None:
    """Raise InputError where no file could be written in the folder, which need not exist yet."""
    from FlareSegmentLib.files.itk_reading import can_be_opened

    if not can_be_opened(folder):
        raise InputError(f"{os.fsencode(folder)!r}: the name has characters that are no text. Choose another --output.")
    try:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        with private_folder(existing):
            pass
    except OSError as error:
        raise not_writable(folder, error) from error


def not_writable(folder: Path, error: OSError) -> InputError:
    """The error for results that cannot be written, in one line."""
    reason = why_not_written(folder, error)
    advice = "Free some, or choose" if reason == NO_SPACE else "Choose"
    return InputError(f"{folder}: results cannot be written there ({reason}). {advice} another folder with --output.")
