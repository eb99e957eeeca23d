"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and put that file in place of `path` once all is written.

    Folders that are missing are made. The temporary file has the suffixes of `path`, and a name that begins with a dot;
    it is removed where writing fails. Raises: OSError where the folder cannot be written to, or has no space left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name, str(os.getpid())))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # NumPy and Astropy do not say why only a part of a file could be written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str, process: str = "*") -> str:
    """The name under which a process writes file `name`; by default a glob of what any killed process has left."""
    return f".{process}-{name}"


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove the unfinished files of these names that dead processes have left in a folder, where it exists."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = re.fullmatch(r"\.(\d+)-(.+)", path.name, re.DOTALL)
        if found and found[2] in names and not _lives(int(found[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if process == os.getpid():  # nothing of our own is left over: an earlier process had our number
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. Raises: OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
