"""What the tests of the site share: the built site, and a browser where there is one."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from built_site import build
from chromium import PROGRAM, QUIET
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed book with a sample chapter added, built with every warning an error, to be published.

    Built once for all processes that test side by side.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root = shared / "site"
    done = shared / "site-built"
    with FileLock(shared / "site.lock"):
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            done.write_text(str(build(root)), "utf8")
    return Path(done.read_text("utf8"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, for tests that say that they need it."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, args=QUIET)
        yield started
        started.close()
