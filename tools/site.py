"""Builds the offline site from the committed notebooks, without executing anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tools import editions, quizzes, slides
from tools.layout import REPOSITORY, Book
from tools.opening import TAG

# what the theme's launch buttons know how to open
GITHUB = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
WEB = re.compile(r"https?://[\w.-]+(?::\d+)?(?:/[\w./~-]*)?")
# in the head of the front page, what the site's own address is to show too
HEAD_TAG = re.compile(
    r'<(?:meta (?:name="description"|property="og:)|link rel="canonical")[^>]*>|<title>[^<]*</title>'
)


class SiteError(Exception):
    """The site could not be built; the message holds the builder's warnings."""


def build(book: Book, output: Path | None = None, repository: str = "", address: str = "") -> Path:
    """Build the site, every warning an error, and the editions; return the folder of the pages.

    repository: on GitHub; adds launch, repository and issue buttons, and the editions install from it.
    address: where the site will be served; adds canonical links, preview tags and a sitemap.
    Without them the site names no address. Raises SiteError.
    """
    repository = _checked("repository", repository.removesuffix("/").removesuffix(".git"), GITHUB)
    address = _checked("address", address, WEB)
    target = output or book.root
    config = target / "_build" / "config.yml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(_config(book, repository, address)), "utf8")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(book.root), "--path-output", str(target), "--config", str(config)]
    # --all: a page that is up to date would not repeat its warnings
    strict = ["--all", "-W", "-n", "--keep-going", "-q"]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    built = subprocess.run(
        [*command, *strict],
        env=os.environ | {"PYTHONPATH": path},  # for the extensions among the tools
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        raise SiteError(f"the site was not built:\n{built.stderr}{built.stdout}")
    pages = target / "_build" / "html"
    if repository:
        # the branch gh-pages is served as it is, folders that begin with an underscore included
        (pages / ".nojekyll").touch()
    _write_entrance(pages)
    _add_editions(book, pages, repository)
    quizzes.write_answers(book, pages.parent / "editions" / "instructor")
    slides.write(pages)
    return pages


def _checked(name: str, value: str, form: re.Pattern[str]) -> str:
    if value and not form.fullmatch(value):
        example = {
            "repository": "https://github.com/NAME/REPOSITORY",
            "address": "https://NAME.github.io/BOOK",
        }
        raise SiteError(f"the {name} is {value!r}; expected an address such as {example[name]}")
    return value


def _config(book: Book, repository: str, address: str) -> dict[str, Any]:
    """`_config.yml` with what an address makes possible."""
    config: dict[str, Any] = yaml.safe_load((book.root / "_config.yml").read_text("utf8"))
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
    """`index.html`, which leads to the front page and says of itself what that says."""
    front = "book/intro.html"
    if (pages / front).is_file():
        tags = HEAD_TAG.findall((pages / front).read_text("utf8"))
        go = f'<meta http-equiv="refresh" content="0; url={front}" />'
        head = "\n".join(['<meta charset="utf-8" />', go, *tags])
        body = f'<p><a href="{front}">To the book</a></p>'
        page = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>{body}</body>\n</html>\n'
        (pages / "index.html").write_text(page, "utf8")


def _add_editions(book: Book, pages: Path, repository: str) -> None:
    """Notebooks that read well outside the site: the download of a page is the edition with solutions folded,
    the one for students lies beside it; instructors find theirs in `_build/editions`, not on the site."""
    made = pages.parent / "editions"
    editions.write(book, made, repository)
    for notebook in (made / "solution").glob("*.ipynb"):
        shutil.copy(notebook, pages / "_sources" / "book")
    shutil.copytree(made / "student", pages / "student", dirs_exist_ok=True)


def archive(pages: Path) -> Path:
    """One file with the whole site, to be unpacked and opened anywhere: `_build/book.zip`."""
    partial = shutil.make_archive(str(pages.parent / ".book.partial"), "zip", pages.parent, pages.name)
    return Path(partial).replace(pages.parent / "book.zip")
