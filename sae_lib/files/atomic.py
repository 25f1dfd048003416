"""Writing files so that a crash leaves the old one or the new one, never half of one; one writer; JSON."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import reprlib
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# no manifest or cfg.json comes near it, and parsed JSON takes many times its size
JSON_BYTES = 32_000_000
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there or choose another disk"),
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another disk",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to"),
}
_short = reprlib.Repr()
_short.maxdict = _short.maxlist = 50
_short.maxstring = _short.maxother = 500
# a value from a file, for a message: long or deeply nested ones are cut
short = _short.repr


def _cannot_write(path: Path, error: OSError) -> OSError:
    number = error.errno or errno.EIO
    remedy = _REMEDIES.get(number, "mend that or choose another folder")
    # OSError picks the subclass that belongs to the number
    return OSError(
        number,
        f"cannot write {path}: {error.strerror or error}. What stood there before is untouched; "
        f"{remedy}, then run again",
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of ``path`` in one step.

    The folder is created if need be. On an exception the temporary file is removed. What a killed process
    left is removed when the same file is next written; a writer at work keeps a lock on its temporary file.
    Raises OSError saying what to do when the disk is full or the folder read-only.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary, alive = _temporary(path)
        try:
            with alive:
                yield temporary
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        # the new name, too, should survive a power cut
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _temporary(path: Path) -> tuple[Path, Any]:
    """A new file beside ``path``, and the handle whose lock says that its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        handle = open(temporary, "xb")  # noqa: SIM115
        # a file system without locks: then nobody gets one, and leftovers stay
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # somebody may have taken it for a leftover before it was locked
        if temporary.exists():
            return temporary, handle
        handle.close()


def _remove_leftovers(path: Path) -> None:
    for name in glob.glob(f".{glob.escape(path.name)}.*.tmp", root_dir=path.parent, include_hidden=True):
        # the lock is refused while the writer lives; the file may also vanish meanwhile
        with contextlib.suppress(OSError), open(path.with_name(name), "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.with_name(name).unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends.

    The folder is created if need be. Raises RuntimeError if another process holds the lock, OSError if the
    folder cannot be written to.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"another process is {doing} {folder}; wait for it, or choose another folder"
        ) from None
    except NotImplementedError:
        warnings.warn(
            f"{folder} is on a file system without locks; let only one process at a time write there",
            stacklevel=4,
        )
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def parsed(text: str, where: object) -> Any:
    """The value of a JSON text. Raises ValueError naming ``where`` it stands."""
    try:
        return json.loads(text)
    # RecursionError: ten thousand opening brackets
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file of at most 32 MB. Raises ValueError naming the file."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected at most {JSON_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    return parsed(text, path)
