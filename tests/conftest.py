"""What several test files share: the built site, the examples of property tests, the order of files.

Examples are the same in every run, so that one run says what the next will;
`HYPOTHESIS_PROFILE=default python -m pytest` looks for new ones.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from book_tree import SAMPLE, call
from filelock import FileLock
from hypothesis import settings

from tools import site
from tools.layout import REPOSITORY, Book

# where the site that is built for the tests says that it and its repository are
REPOSITORY_ADDRESS = "https://github.com/example/sae-book"
ADDRESS = "https://example.github.io/sae-book"

settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # a process for each core: more threads would only wait for each other
    torch.set_num_threads(1)


# a file's tests stay in one process: these take minutes, so they start first and none is left for the end
LONG = (
    "test_browser.py",
    "test_cli.py",
    "test_distributed.py",
    "test_triton.py",
    "test_paper_scale.py",
    "test_book_editions.py",
    "test_book_run.py",
    "test_training.py",
    "test_book_published.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # what a test draws without a generator of its own is the same in every run and whatever ran before it
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


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


def build(root: Path) -> Path:
    """Build that book in a new folder; returns where its pages are."""
    root.mkdir()
    for name in ("_config.yml", "genindex.md", "references.bib"):
        shutil.copy(REPOSITORY / name, root)
    shutil.copytree(REPOSITORY / "_static", root / "_static")
    shutil.copytree(REPOSITORY / "book", root / "book")
    contents = yaml.safe_load((REPOSITORY / "_toc.yml").read_text("utf8"))
    contents["parts"].append({"caption": "Sample", "chapters": [{"file": f"book/{SAMPLE.stem}"}]})
    (root / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), "utf8")

    for folder in ("chapters", "sae_lib"):
        (root / folder).mkdir()
    (root / "sae_lib" / "__init__.py").touch()
    for source in (*Book().sources(), SAMPLE, REPOSITORY / "chapters" / "quizzes.md"):
        shutil.copy(source, root / "chapters")
    executed = call("run", "--root", str(root), SAMPLE.stem)
    assert executed.returncode == 0, executed.stdout
    return site.build(Book(root), repository=REPOSITORY_ADDRESS, address=ADDRESS)
