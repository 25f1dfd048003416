"""The site that the tests look at: the committed book and a sample chapter, as it would be published."""

import re
import shutil
from pathlib import Path

import yaml
from book_tree import SAMPLE, call

from tools import site
from tools.layout import REPOSITORY, Book

# where that site says that it and its repository are
REPOSITORY_ADDRESS = "https://github.com/example/sae-book"
ADDRESS = "https://example.github.io/sae-book"
CHAPTERS = [source.stem for source in (*Book().sources(), SAMPLE)]


def documents() -> set[str]:
    """The pages of that book by its contents, as addresses within the site."""
    contents = (REPOSITORY / "_toc.yml").read_text("utf8")
    listed = re.findall(r"^root: (book/\w+)$|file: (book/\w+)$", contents, re.MULTILINE)
    return {f"{root or page}.html" for root, page in listed} | {f"book/{SAMPLE.stem}.html"}


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
    written = (REPOSITORY / "chapters" / name for name in ("quizzes.md", "claims.md"))
    for source in (*Book().sources(), SAMPLE, *written):
        shutil.copy(source, root / "chapters")
    executed = call("run", "--root", str(root), SAMPLE.stem)
    assert executed.returncode == 0, executed.stdout
    return site.build(Book(root), repository=REPOSITORY_ADDRESS, address=ADDRESS)
