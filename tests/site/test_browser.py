"""The site as a reader's browser shows it: headless Chromium on every page, without a network.

Skipped where there is no Chromium: install the package `chromium`, or name a browser in CHROMIUM.
"""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from built_site import documents
from chromium import needs_chromium
from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, needs_chromium]

# axe else hands over every node that passes too
BROKEN = {"resultTypes": ["violations"]}


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the site and says nothing."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    handler = functools.partial(Server, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def names(built: Path) -> list[str]:
    """Every page of the book, the index, the search page, and one of the library's source."""
    return [
        *sorted(path.relative_to(built).as_posix() for path in (built / "book").glob("*.html")),
        "genindex.html",
        "search.html",
        "_modules/sae_lib/training/loop.html",
    ]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    yield context.new_page()
    context.close()


def test_every_page_loads_alone_and_fits_a_telephone(page: Page, address: str, names: list[str]) -> None:
    """No console error, no failed request, none to another host; formulas typeset; nothing sticks out."""
    wrong: list[str] = []
    page.on(
        "console", lambda message: message.type == "error" and wrong.append(f"{page.url}: {message.text}")
    )
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"{page.url}: {request.url} failed"))
    page.on(
        "request", lambda r: r.url.startswith((address, "data:")) or wrong.append(f"{page.url}: asks {r.url}")
    )
    typeset = 0
    for name in names:
        page.set_viewport_size({"width": 1200, "height": 900})
        page.goto(address + name)
        page.wait_for_load_state("networkidle")
        formulas = page.locator("article .math").count()
        if formulas:
            page.wait_for_selector("mjx-container", state="attached")
            typeset += page.locator("mjx-container").count()
        if bad := page.locator("mjx-merror").count():
            wrong.append(f"{name}: {bad} formulas with an error")
        page.set_viewport_size({"width": 360, "height": 700})
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 360:
            wrong.append(f"{name}: {width} pixels wide on a telephone of 360")
    assert not wrong, "\n".join(wrong)
    assert documents() <= set(names)
    assert typeset > 500


@pytest.mark.timeout(1800)  # some ten seconds a page on a busy machine
def test_no_serious_barrier(page: Page, address: str, names: list[str]) -> None:
    """axe-core finds nothing serious or critical, on any page; colours are tried in the dark theme too.

    There on two chapters of the fourteen: one with theorems and exercises, one with dashboards.
    """
    barriers = []
    for name in names:
        page.emulate_media(color_scheme="light", reduced_motion="reduce")  # else colours fade into each other
        page.goto(address + name)
        page.wait_for_load_state("networkidle")
        seen = {"light": Axe().run(page, options=BROKEN)}
        if not re.match(r"book/\d\d_", name) or name.startswith(("book/02_", "book/12_")):
            page.emulate_media(color_scheme="dark")
            page.wait_for_selector("html[data-theme=dark]", state="attached")
            seen["dark"] = Axe().run(page, options={"runOnly": ["color-contrast"], **BROKEN})
        for scheme, result in seen.items():
            for violation in result.response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    html = violation["nodes"][0]["html"][:200]
                    times = len(violation["nodes"])
                    barriers.append(f"{name}, {scheme}: {violation['id']}, {times} times: {html}")
    assert not barriers, "\n".join(barriers)


def test_a_mean_and_its_spread_stay_on_one_line(page: Page, address: str) -> None:
    page.goto(f"{address}book/08_against_everyone.html")
    page.wait_for_load_state("networkidle")
    table = page.locator("article table", has_text="published").first
    lines = (  # of the text in a cell
        "all => all.map((p) => { const r = document.createRange(); r.selectNodeContents(p);"
        " return r.getClientRects().length; })"
    )
    cells = table.locator("td p", has_text="±").evaluate_all(lines)
    assert len(cells) > 20
    assert set(cells) == {1}


@pytest.mark.parametrize(
    "term", ["superposition", "resonance", "co-occurrence", "quantile", "SmolLM2", "feature_recovery_rate"]
)
def test_search_finds(page: Page, address: str, term: str) -> None:
    page.goto(f"{address}search.html?q={term}")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li").count() >= 1


def test_front_picture_answers_to_the_keyboard(page: Page, address: str) -> None:
    page.goto(f"{address}book/intro.html")
    page.wait_for_load_state("networkidle")
    reached: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "front-p":
            break
    assert reached[-1] == "front-p", "80 presses of Tab did not reach the slider"
    before, lit = page.inner_text("#front-words"), page.locator("#front-dots .found").count()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#front-words") != before
    assert "4 f" in page.inner_text("#front-words")
    # recovery comes and goes: most features at half their frequency, next to none at four times
    assert lit > 200 > 10 > page.locator("#front-dots .found").count()


def test_every_chapter_downloads_as_a_notebook(page: Page, address: str, built: Path) -> None:
    for path in sorted((built / "book").glob("[0-9][0-9]_*.html")):
        page.goto(f"{address}book/{path.name}")
        links = page.locator("a.btn-download-source-button").evaluate_all(
            "all => all.map(a => a.getAttribute('href'))"
        )
        (notebook,) = {link for link in links if link.endswith(".ipynb")}
        answer = page.request.get(urljoin(page.url, notebook))
        assert answer.ok
        assert answer.json()["nbformat"] == 4
