"""What a site with an address says of it: launch and canonical links, previews, sitemap; without, nothing."""

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import page_head
import pytest
from book_tree import call, small_book
from bs4 import BeautifulSoup
from built_site import ADDRESS, CHAPTERS, REPOSITORY_ADDRESS, documents
from nbformat import read, write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import sae_lib
from tools import site
from tools.layout import REPOSITORY, Book, BookError

SENTENCE = "One sentence that is long enough to stand for the whole page on its own."


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A book of two pages, one of them a notebook, built without an address."""
    root = tmp_path_factory.mktemp("local")
    for name in ("_config.yml", "references.bib"):
        shutil.copy(REPOSITORY / name, root)
    shutil.copytree(REPOSITORY / "_static", root / "_static")
    for folder in ("book", "chapters"):
        (root / folder).mkdir()
    (root / "chapters" / "01_a.md").touch()
    (root / "book" / "intro.md").write_text(f'# The "front" page\n\n{" ".join([SENTENCE] * 4)}\n', "utf8")
    cells = [
        new_markdown_cell("# 1 · A chapter\n\n:::{admonition} In this chapter\nWhy $X = HV$.\n\nMore.\n:::"),
        new_code_cell("1"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    write(new_notebook(cells=cells, metadata=metadata), root / "book" / "01_a.ipynb")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n- file: book/01_a\n")
    return site.build(Book(root))


def head(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text("utf8"), "html.parser").head


def meta(page: Path) -> dict[str, str]:
    """The page's tags by name or property; each may come only once."""
    tags = [(str(tag.get("name") or tag["property"]), str(tag["content"])) for tag in head(page).find_all(
        lambda tag: tag.name == "meta" and (tag.get("property") or tag.get("name") == "description")
    )]  # fmt: skip
    assert len(dict(tags)) == len(tags), f"{page.name}: {tags}"
    return dict(tags)


def launches(page: Path) -> dict[str, str]:
    links = BeautifulSoup(page.read_text("utf8"), "html.parser").select(".dropdown-launch-buttons a")
    return {link.get_text(strip=True): str(link["href"]) for link in links}


@pytest.mark.slow
def test_a_site_without_an_address_names_none(local: Path) -> None:
    assert not (local / "sitemap.xml").exists()
    for name in ("index.html", "book/intro.html", "book/01_a.html"):
        assert set(meta(local / name)) == {"description"}
        assert not head(local / name).find("link", rel="canonical")
        assert not launches(local / name)
        assert "github" not in re.sub(
            r"<(script|style)\b.*?</\1>", "", (local / name).read_text(), flags=re.S
        )
    assert meta(local / "book/01_a.html")["description"] == "Why X = HV."
    words = meta(local / "book/intro.html")["description"]
    assert words == f"{SENTENCE} {SENTENCE}"


@pytest.mark.parametrize(
    ("repository", "address", "told"),
    [
        ("github.com/a/b", "", "the repository is 'github.com/a/b'; expected an address such as"),
        ("https://gitlab.com/a/b", "", "the repository is"),
        ("https://github.com/a", "", "the repository is"),
        ("", "example.org", "the address is 'example.org'"),
        ("", 'https://example.org/"><script>', "the address is"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(
    repository: str, address: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(BookError, match=re.escape(told)):
        site.build(Book(), repository=repository, address=address)
    if repository == "github.com/a/b":
        # not on this book, whose generated pages the command writes first
        root = str(small_book(tmp_path).root)
        result = call("site", "--root", root, "--repository", repository, "--address", address)
        assert result.returncode == 1
        assert told in result.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Short.", "Short."),
        ("a" * 70 + ". " + "b" * 150, "a" * 70 + "."),
        ("word " * 60, ("word " * 39).strip() + "…"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_descriptions_end_at_a_sentence_or_a_word(text: str, expected: str) -> None:
    assert page_head.shortened(text.strip()) == expected


@pytest.mark.slow
def test_launch_links_open_the_student_edition(built: Path) -> None:
    chapters = sorted((built / "book").glob("[0-9][0-9]_*.html"))
    assert [chapter.stem for chapter in chapters] == CHAPTERS
    owner = urlsplit(REPOSITORY_ADDRESS).path
    for chapter in chapters:
        edition = f"student/{chapter.stem}.ipynb"
        assert launches(chapter) == {
            "Colab": f"https://colab.research.google.com/github{owner}/blob/gh-pages/{edition}",
            "Binder": f"https://mybinder.org/v2/gh{owner}/v{sae_lib.__version__}"
            f"?urlpath=lab/tree/_build/editions/{edition}",
        }
        # what the link to Colab opens is published with the site, and installs from the repository
        first = next(cell for cell in read(built / edition, as_version=4).cells if cell.cell_type == "code")
        assert f'"{REPOSITORY_ADDRESS}"' in first.source
        assert f'"v{sae_lib.__version__}"' in first.source
    assert (built / ".nojekyll").exists()
    assert not launches(built / "book" / "intro.html")


@pytest.mark.slow
def test_repository_and_issue_buttons(built: Path) -> None:
    page = BeautifulSoup((built / "book" / "glossary.html").read_text("utf8"), "html.parser")
    (repository,) = page.select("a.btn-source-repository-button")
    (issue,) = page.select("a.btn-source-issues-button")
    assert repository["href"] == REPOSITORY_ADDRESS
    assert str(issue["href"]).startswith(f"{REPOSITORY_ADDRESS}/issues/new?title=")


@pytest.mark.slow
def test_sitemap_lists_the_pages_of_the_book(built: Path) -> None:
    root = ElementTree.parse(built / "sitemap.xml").getroot()
    space = "{http://www.sitemaps.org/schemas/sitemap/0.9}"
    assert root.tag == f"{space}urlset"
    listed = [str(place.text) for place in root.iterfind(f"{space}url/{space}loc")]
    assert set(listed) == {f"{ADDRESS}/{page}" for page in (*documents(), "genindex.html")}
    assert len(set(listed)) == len(listed)


@pytest.mark.slow
def test_every_page_has_its_canonical_link_and_preview(built: Path) -> None:
    described = set()
    for name in documents():
        page = built / name
        (canonical,) = head(page).find_all("link", rel="canonical")
        tags = meta(page)
        assert canonical["href"] == tags["og:url"] == f"{ADDRESS}/{name}"
        assert tags["og:title"]
        assert tags["og:title"] in head(page).title.get_text()
        assert 10 < len(tags["description"]) <= page_head.LONGEST
        assert tags["og:description"] == tags["description"]
        assert tags["og:image"].startswith(f"{ADDRESS}/")
        assert (built / tags["og:image"].removeprefix(f"{ADDRESS}/")).is_file()
        described.add(tags["description"])
    # descriptions are of the pages, not of the site
    assert len(described) > 0.9 * len(documents())


@pytest.mark.slow
def test_the_site_s_own_address_shows_the_front_page(built: Path) -> None:
    assert meta(built / "index.html") == meta(built / "book" / "intro.html")
    (go,) = head(built / "index.html").find_all("meta", attrs={"http-equiv": "refresh"})
    assert go["content"] == "0; url=book/intro.html"
    assert head(built / "index.html").find("title")
