"""What several test files share: the built site, the examples of property tests, how tests are shared out.

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file stay in one process, which makes its fixtures once; so do those of the site."""
    for item in items:
        group = "site" if "built" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed book with a sample chapter added, built with every warning an error, to be published."""
    root = tmp_path_factory.mktemp("site")
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
