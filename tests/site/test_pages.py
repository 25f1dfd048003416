"""The built site: works without a network, every asset is there, every figure has words."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from book_tree import SAMPLE
from bs4 import BeautifulSoup, Tag

from tools import site

# links that a browser loads by itself, unlike rel="next" or rel="search"
LOADED_LINKS = {"stylesheet", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "icon"}
CSS_ASSET = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""")


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, BeautifulSoup]:
    paths = [path for path in built.rglob("*.html") if "_static" not in path.parts]  # templates of the theme
    return {path: BeautifulSoup(path.read_text("utf8"), "html.parser") for path in paths}


@pytest.fixture(scope="module")
def sample(pages: dict[Path, BeautifulSoup]) -> BeautifulSoup:
    return next(page for path, page in pages.items() if path.stem == SAMPLE.stem)


def addresses(page: BeautifulSoup) -> Iterator[str]:
    """Everything that a browser loads to show a page."""
    for tag in page.find_all(True):
        assert isinstance(tag, Tag)
        if tag.name != "link" and tag.get("src"):
            yield str(tag["src"])
        if tag.get("srcset"):
            yield from (part.split()[0] for part in str(tag["srcset"]).split(","))
        if tag.name == "link" and LOADED_LINKS & set(tag.get("rel") or ()):
            yield str(tag["href"])
        if tag.name == "style" or tag.get("style"):
            yield from CSS_ASSET.findall(tag.get_text() if tag.name == "style" else str(tag["style"]))


def assets(built: Path, pages: dict[Path, BeautifulSoup]) -> Iterator[tuple[Path, str]]:
    """(the file that asks, the address it asks for) over all pages and style sheets."""
    for path, page in pages.items():
        yield from ((path, address) for address in addresses(page))
    for path in built.rglob("*.css"):
        yield from ((path, address) for address in CSS_ASSET.findall(path.read_text("utf8")))


@pytest.mark.slow
def test_every_asset_is_local_and_present(built: Path, pages: dict[Path, BeautifulSoup]) -> None:
    wrong = set()
    for path, address in assets(built, pages):
        parts = urlsplit(address)
        if parts.scheme == "data" or address.startswith("#"):
            continue
        external = parts.scheme or parts.netloc or address.startswith("/")
        if external or not (path.parent / unquote(parts.path)).is_file():
            wrong.add(f"{path.relative_to(built)}: {address}")
    assert not wrong, "assets that are not in the site:\n" + "\n".join(sorted(wrong))


@pytest.mark.slow
def test_pages_beside_the_book_are_in_the_site(built: Path, pages: dict[Path, BeautifulSoup]) -> None:
    """Links by hand into _static, such as chapter 12's to its dashboards; the builder does not check them."""
    targets = {
        (path.parent / str(link["href"])).resolve()
        for path, page in pages.items()
        for link in page.find_all("a", href=re.compile("_static/"))
    }
    assert (built / "_static" / "dashboards" / "12_gba.html").resolve() in targets
    assert all(path.is_file() for path in targets)


def index_links(built: Path, pages: dict[Path, BeautifulSoup]) -> list[tuple[str, str, str]]:
    """(entry, page, anchor) for every link of the index."""
    shown = pages[built / "genindex.html"].select("table.indextable a")
    entries = []
    for link in shown:
        page, _, anchor = str(link["href"]).partition("#")
        entries.append((link.get_text(), page, anchor))
    return entries


@pytest.mark.slow
def test_index_names_terms_of_glossary_and_chapters(
    built: Path, pages: dict[Path, BeautifulSoup], sample: BeautifulSoup
) -> None:
    links = index_links(built, pages)
    entries = {entry for entry, _, _ in links}
    assert {"superposition", "neuron resonance", "chapters of the book"} <= entries
    terms = [term.get_text().rstrip("#").strip() for term in
             pages[built / "book" / "glossary.html"].select("dl.glossary dt")]  # fmt: skip
    assert terms
    assert set(terms) <= entries
    marked = [page for entry, page, _ in links if entry == "chapters of the book"]
    assert marked == [f"book/{SAMPLE.stem}.html"]
    assert "It exercises what the chapters of the book use" in sample.get_text()  # the role shows its text
    assert sample.select('nav a[href="../genindex.html"]'), "the table of contents has no index"


@pytest.mark.slow
def test_every_link_of_the_index_leads_somewhere(built: Path, pages: dict[Path, BeautifulSoup]) -> None:
    links = index_links(built, pages)
    broken = [link for link in links if not pages[built / link[1]].find(id=link[2])]
    assert not broken


@pytest.mark.slow
def test_relative_links_lead_somewhere(built: Path, pages: dict[Path, BeautifulSoup]) -> None:
    """Every address of a page within the site, with its anchor; the builder checks only those of Markdown."""
    broken = set()
    for path, page in pages.items():
        for link in page.find_all("a", href=True):
            parts = urlsplit(str(link["href"]))
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file()
            if there and parts.fragment and target in pages:
                there = pages[target].find(id=unquote(parts.fragment)) is not None
            if not there:
                broken.add(f"{path.relative_to(built)}: {link['href']}")
    assert not broken, "links that lead nowhere:\n" + "\n".join(sorted(broken))


@pytest.mark.slow
def test_archive_holds_the_whole_site(built: Path) -> None:
    packed = site.archive(built)
    with zipfile.ZipFile(packed) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == {f"{built.name}/{p.relative_to(built)}" for p in built.rglob("*") if p.is_file()}
    assert [path.name for path in built.parent.glob("*.zip")] == ["book.zip"]


@pytest.mark.slow
def test_no_script_in_a_page_names_another_host(pages: dict[Path, BeautifulSoup]) -> None:
    for path, page in pages.items():
        for script in page.find_all("script"):
            assert not re.search(r"https?://", script.get_text()), f"{path.name}: {script}"


@pytest.mark.slow
def test_search_is_complete(built: Path, pages: dict[Path, BeautifulSoup]) -> None:
    assert (built / "searchindex.js").stat().st_size > 1000
    scripts = {Path(urlsplit(address).path).name for address in addresses(pages[built / "search.html"])}
    assert {"searchindex.js", "searchtools.js", "language_data.js"} <= scripts


@pytest.mark.slow
def test_mathjax_comes_with_its_fonts(built: Path, sample: BeautifulSoup) -> None:
    (script,) = [str(tag["src"]) for tag in sample.find_all("script", src=re.compile("mathjax"))]
    folder = (built / "book" / urlsplit(script).path).resolve().parent
    assert len(list((folder / "output/chtml/fonts/woff-v2").glob("*.woff"))) > 20


@pytest.mark.slow
def test_every_image_has_words(pages: dict[Path, BeautifulSoup]) -> None:
    for path, page in pages.items():
        for image in page.find_all("img"):
            # without metadata, the path of the image file stands in for the words
            words = re.sub(r"\S*_images/\S*", "", str(image.get("alt") or ""))
            assert words.strip(), f"{path.name}: an image without alt text: {image}"


@pytest.mark.slow
def test_sample_shows_what_chapters_rely_on(built: Path, sample: BeautifulSoup) -> None:
    text = " ".join(sample.get_text().split())
    assert "The rate is 0.91, see" in text  # a glued number, formatted in the prose
    assert re.search(r"Definition \d+", text)
    assert sample.find(class_="exercise")
    assert sample.find("details", class_="hide")  # the cell tagged hide-input
    assert "injected" not in text
    assert len(re.findall(r'profile = "quick"', text)) == 1  # papermill's own cell does not show
    assert sample.find("img", alt="Line: a straight line from 0 to 1.")
    download = built / "_sources" / "book" / f"{SAMPLE.stem}.ipynb"
    assert "image/png" in download.read_text("utf8")
