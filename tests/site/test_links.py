"""Links of the Markdown files to files of this repository, without building the site."""

import re
from pathlib import Path

import pytest

from tools import generated
from tools.layout import REPOSITORY

# [text](address), not within `code`; the text may hold one pair of brackets
LINK = re.compile(r"`[^`\n]*`|!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
FILES = (path for folder in (".", "book", "chapters") for path in (REPOSITORY / folder).glob("*.md"))
PAGES = sorted(path for path in FILES if path.parent.name != "book" or path.name not in generated.PAGES)


def links(text: str) -> list[str]:
    """Addresses of the links to files, without their anchors; code left out, other directives not."""
    prose = re.sub(r"^( *)(`{3,})(?!`|\{(?!code-cell)).*?^\1\2$", "", text, flags=re.MULTILINE | re.DOTALL)
    addresses = [address.partition("#")[0] for address in LINK.findall(prose)]
    return [address for address in addresses if address and not re.match(r"\w+:", address)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_name_files_that_exist(page: Path) -> None:
    # a chapter is shown in book/
    folder = REPOSITORY / "book" if page.parent.name == "chapters" else page.parent
    written = {REPOSITORY / "book" / name for name in generated.PAGES}  # by the build
    named = [folder / address for address in links(page.read_text("utf8"))]
    broken = [path for path in named if not path.exists() and path.resolve() not in written]
    assert not broken


def test_links_are_found() -> None:
    text = (
        "[a](b.md#c) `[no](x)` ![p](_static/q.png) [w](https://e.org) [h](#i) [`k`[0]](l.md)\n"
        "```\n[n](o)\n```\n````{exercise}\n[r](s.md)\n```python\nt[0](u)\n```\n````\n"
    )
    assert links(text) == ["b.md", "_static/q.png", "l.md", "s.md"]
    guides = {f"book/{page.name}" for page in PAGES if page.name.startswith("howto_")}
    assert guides | {"CONTRIBUTING.md"} <= set(links((REPOSITORY / "README.md").read_text("utf8")))
