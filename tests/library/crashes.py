"""A process that dies around the renaming of a file, for tests of what is left then."""

import itertools
import os
from collections.abc import Callable


class CrashError(Exception):
    """What `crash_at` raises."""


def crash_at(moment: int) -> Callable[[str, str], None]:
    """An `os.replace` that crashes once: before a renaming at even moments, after it at odd ones."""
    rename, calls = os.replace, itertools.count()

    def replace(source: str, target: str) -> None:
        call = next(calls)
        if moment == 2 * call:
            raise CrashError
        rename(source, target)
        if moment == 2 * call + 1:
            raise CrashError

    return replace
