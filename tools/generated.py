"""Pages that the build writes and that are committed: each has a name, ``PAGE``, and a ``text``."""

from typing import Protocol

from sae_lib.files.atomic import replacing
from tools import claims, front, quizzes, status
from tools.layout import Book


class Page(Protocol):
    """What writes a page: a module, or an object."""

    @property
    def PAGE(self) -> str:
        """The name of its file in `book/`."""

    def text(self, book: Book) -> str:
        """What it holds, "" where there is nothing to say."""


PAGES: tuple[Page, ...] = (status, claims, front, quizzes)


def write(book: Book) -> None:
    """Write the pages that have something to say and have changed, each in one step."""
    for page in PAGES:
        target, content = book.pages / page.PAGE, page.text(book)
        if content and not (target.is_file() and target.read_text("utf8") == content):
            with replacing(target) as temporary:
                temporary.write_text(content, "utf8")
