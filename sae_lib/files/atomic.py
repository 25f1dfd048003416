"""Writing files so that a crash leaves the old or the new one, never a part; one writer a folder; JSON."""

import contextlib
import errno
import glob
import json
import os
import reprlib
import secrets
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

# no manifest or cfg.json comes near it, and parsed JSON takes many times its size
JSON_BYTES = 32_000_000
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there or choose another disk"),
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another disk",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to"),
}
# what a file system without locks answers; not every system has all of these names
_NO_LOCKS = {getattr(errno, name, None) for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP")} - {None}
# Windows: access denied, sharing violation
_IN_USE = (5, 32)
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
    """Yield a temporary path to write to; on success that file takes the place of ``path`` in one step.

    The folder is created if need be. On an exception the temporary file is removed. What a killed process
    left is removed when the same file is next written; a writer at work holds a lock beside its file.

    Raises:
        OSError: The disk is full, the folder read-only or the like; says what to do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary, lock = _temporary(path)
        try:
            yield temporary
            # Windows flushes only files opened for writing
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            _replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            _discard(lock)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _temporary(path: Path) -> tuple[Path, BaseFileLock]:
    """Return an unused path beside ``path``, and the lock that shows that its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        lock = _lock_of(temporary)
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            # without locks leftovers stay; where not even this file can be made, opening the other says why
            if not (isinstance(error, Timeout) and os.path.exists(lock.lock_file)):
                return temporary, lock
        # otherwise somebody took the lock for a leftover before it was held
        if lock.is_locked and os.path.exists(lock.lock_file):
            return temporary, lock
        lock.release()


def _lock_of(temporary: Path) -> BaseFileLock:
    # not the file itself: Windows neither writes to a locked file nor replaces an open one
    return FileLock(f"{temporary}.lock", timeout=0)


def _discard(lock: BaseFileLock) -> None:
    # while it is held, so that nobody finds it free; Windows removes it on release instead
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()


def _remove_leftovers(path: Path) -> None:
    pattern = f".{glob.escape(path.name)}.*.tmp"
    names = [
        *glob.glob(pattern, root_dir=path.parent, include_hidden=True),
        *glob.glob(f"{pattern}.lock", root_dir=path.parent, include_hidden=True),
    ]
    for name in {name.removesuffix(".lock") for name in names}:
        temporary = path.with_name(name)
        lock = _lock_of(temporary)
        # the lock is refused while the writer lives (Timeout is an OSError)
        with contextlib.suppress(OSError, NotImplementedError):
            lock.acquire()
            try:
                temporary.unlink(missing_ok=True)
            finally:
                _discard(lock)


def _replace(source: Path, target: Path) -> None:
    """Do as ``os.replace``; on Windows, wait a little for a program that has the target open."""
    for _ in range(20):
        try:
            return os.replace(source, target)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _IN_USE:
                raise
        time.sleep(0.1)
    return os.replace(source, target)


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut; Windows cannot open folders."""
    if os.name == "nt":
        return
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def only_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends.

    The folder is created if need be. Where the file system has no locks, a warning says so. ``doing`` is for
    the message, such as "training in".

    Raises:
        RuntimeError: Another process holds the lock.
        OSError: The folder cannot be written to.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"another process is {doing} {folder}; wait for it, or choose another folder"
        ) from None
    # NotImplementedError: how older versions of filelock say that there are no locks
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise _cannot_write(folder, error) from error
        warnings.warn(
            f"{folder} is on a file system without locks; let only one process at a time write there",
            stacklevel=4,
        )
    try:
        yield
    finally:
        lock.release()


def parsed(text: str, where: object) -> Any:
    """Return the value of a JSON text; the ValueError for one that is not valid says where it stands."""
    try:
        return json.loads(text)
    # RecursionError: ten thousand opening brackets
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file of at most 32 MB; for any other file a ValueError that names it."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected at most {JSON_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    return parsed(text, path)
