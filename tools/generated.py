"""Pages that the build writes and that are committed: each has a name, ``PAGE``, and a ``text``."""

from tools import claims, front, status
from tools.layout import Book

PAGES = (status, claims, front)


def write(book: Book) -> None:
    """Write the pages that have something to say and have changed, each in one step."""
    for page in PAGES:
        target, content = book.pages / page.PAGE, page.text(book)
        if content and not (target.is_file() and target.read_text("utf8") == content):
            partial = target.with_name(f".{target.name}.partial")
            partial.write_text(content, "utf8")
            partial.replace(target)
