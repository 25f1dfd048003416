"""Ctrl-C while training: the first asks for an end after the step, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae_lib.distributed.process_group import launched


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that a step is never cut in half; the next raises.

    Outside of the main thread, where Python delivers no signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    # torchrun passes Ctrl-C on to processes that the terminal has told already: they hear the first one twice
    left = 2 if launched() else 1

    def stop(*_: Any) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt(
                "training stopped at once, by another Ctrl-C; the last checkpoint, if any, is intact"
            )
        left -= 1
        event.set()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
