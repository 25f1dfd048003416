"""Builds the offline site from the committed notebooks, without executing anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tools import editions, generated, quizzes, slides
from tools.layout import REPOSITORY, Book, BookError
from tools.opening import TAG

# what the theme's launch buttons know how to open
GITHUB = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
WEB = re.compile(r"https?://[\w.-]+(?::\d+)?(?:/[\w./~-]*)?")
# in the head of the front page, what the site's own address is to show too
HEAD_TAG = re.compile(
    r'<(?:meta (?:name="description"|property="og:)|link rel="canonical")[^>]*>|<title>[^<]*</title>'
)


def build(book: Book, repository: str = "", address: str = "") -> Path:
    """Build the site, every warning an error, and the editions; return the folder of the pages.

    repository: on GitHub; adds launch, repository and issue buttons, and the editions install from it.
    address: where the site will be served; adds canonical links, preview tags and a sitemap.
    Without them the site names no address.
    """
    repository = repository.removesuffix("/").removesuffix(".git")
    for name, value, form, example in (
        ("repository", repository, GITHUB, "https://github.com/NAME/REPOSITORY"),
        ("address", address, WEB, "https://NAME.github.io/BOOK"),
    ):
        if value and not form.fullmatch(value):
            raise BookError(f"the {name} is {value!r}; expected an address such as {example}")
    generated.write(book)
    config = book.root / "_build" / "config.yml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(_config(book, repository, address)), "utf8")
    # --all: a page that is up to date would not repeat its warnings
    strict = ["--all", "-W", "-n", "--keep-going", "-q"]
    program = str(Path(sys.executable).with_name("jupyter-book"))
    built = subprocess.run(
        [program, "build", str(book.root), "--config", str(config), *strict],
        # the library beside these tools, whatever is installed, for the API reference
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        raise BookError(f"the site was not built:\n{built.stderr}{built.stdout}")
    pages = book.root / "_build" / "html"
    if repository:
        # the branch gh-pages is served as it is, folders that begin with an underscore included
        (pages / ".nojekyll").touch()
    _write_entrance(pages)
    _add_editions(book, pages, repository)
    quizzes.write_answers(book, pages.parent / "editions" / "instructor")
    slides.write(pages)
    return pages


def _config(book: Book, repository: str, address: str) -> dict[str, Any]:
    """Return `_config.yml` with what an address makes possible, and this repository's extensions."""
    config: dict[str, Any] = yaml.safe_load((book.root / "_config.yml").read_text("utf8"))
    extensions = config["sphinx"]["local_extensions"]
    extensions |= {name: str(REPOSITORY / folder) for name, folder in extensions.items()}
    if repository:
        config["repository"] = {"url": repository, "branch": TAG, "path_to_book": ""}
        config["html"] |= {"use_repository_button": True, "use_issues_button": True}
        config["launch_buttons"] |= {
            "notebook_interface": "jupyterlab",
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        }
    if address:
        config["html"]["baseurl"] = address.rstrip("/") + "/"
    return config


def _write_entrance(pages: Path) -> None:
    """Write `index.html`, which leads to the front page and says of itself what that says."""
    front = "book/intro.html"
    if (pages / front).is_file():
        tags = HEAD_TAG.findall((pages / front).read_text("utf8"))
        go = f'<meta http-equiv="refresh" content="0; url={front}" />'
        head = "\n".join(['<meta charset="utf-8" />', go, *tags])
        body = f'<p><a href="{front}">To the book</a></p>'
        page = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>{body}</body>\n</html>\n'
        (pages / "index.html").write_text(page, "utf8")


def _add_editions(book: Book, pages: Path, repository: str) -> None:
    """Add notebooks that read well outside the site: a page's download has its solutions folded.

    The one for students lies beside it; instructors find theirs in `_build/editions`, not on the site.
    """
    folder = pages.parent / "editions"
    editions.write(book, folder, repository)
    for notebook in (folder / "solution").glob("*.ipynb"):
        shutil.copy(notebook, pages / "_sources" / "book")
    shutil.copytree(folder / "student", pages / "student", dirs_exist_ok=True)


def archive(pages: Path) -> Path:
    """Pack the site into one file, to be unpacked and opened anywhere: `_build/book.zip`."""
    partial = shutil.make_archive(str(pages.parent / ".book.partial"), "zip", pages.parent, pages.name)
    return Path(partial).replace(pages.parent / "book.zip")
