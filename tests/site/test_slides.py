"""Slides: what the rule shows, and every deck in headless Chromium, where nothing may be cut."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from book_tree import SAMPLE
from bs4 import BeautifulSoup
from chromium import needs_chromium
from PIL import Image
from playwright.sync_api import Browser, Page

from tools import quizzes, slides
from tools.exercises import exercises
from tools.layout import REPOSITORY, Book, BookError

QUESTIONS = quizzes.read((REPOSITORY / "chapters" / quizzes.PAGE).read_text("utf8"))
CHAPTER = """
<script>window.MathJax = {}</script><script src="../_static/mathjax/tex-chtml.js"></script>
<article><section id="top"><h1>9 · Dots<a class="headerlink" href="#top">#</a></h1>
<div class="admonition-in-this-chapter admonition"><p class="admonition-title">In this chapter</p>
<p>What dots do.</p><p><strong>You need</strong> a ruler.</p></div>
<section id="a"><span id="label"></span><h2>Counting</h2>
<p>How many? A second sentence, see <a href="08_lines.html">lines</a>.</p>
<div class="cell"><div class="cell_input">draw()</div>
<div class="cell_output"><img style="width: 640px;" alt="Dots." src="../_images/wide.png"/></div></div>
<p>See the dots. In <span class="math">\\(a. B\\)</span> there are two.</p><p>Aside.</p>
<section id="b"><h3>Finer</h3><div class="cell"><div class="cell_output">
<img alt="More." src="../_images/square.png"/></div></div>
<div class="proof definition admonition"><p class="admonition-title">Definition 1 (Dot)</p>
<section class="definition-content" id="proof-content"><p>A dot.</p></section></div>
<div class="proof admonition"><p>Proof. By looking.</p></div>
<p>Hence</p><div class="math"><span class="eqno">(1)</span>\\[x = 1\\]</div></section></section>
<section id="b2"><h2>Numbers</h2><div class="cell"><div class="cell_output">
<table><tr><td>1 ± 2</td></tr></table><table>LONG</table></div></div></section>
<div class="junk"></div>
<section id="exercises"><h2>Exercises</h2><p>Prose.</p>
<div class="exercise admonition"><p class="admonition-title">Exercise 1</p><section><p>Do it.</p>
<div class="highlight-python"><div class="highlight"><pre>check(…)</pre></div></div></section></div>
<div class="solution admonition"><p>The secret.</p></div></section>
<section id="further-reading"><h2>Further reading</h2><p>Books.</p></section></section></article>
""".replace("LONG", "<tr><td>row</td></tr>" * 20)
QUIZ = """<section id="chapter-9"><div class="quiz-question"><p>9.1 Which?</p></div></section>
<section id="chapter-8"><div class="quiz-question"><p>Not here.</p></div></section>"""

# of every slide: what sticks out of it or of its body, formulas that failed, the size of its text
MEASURE = """[...document.querySelectorAll("main > section")].map(slide => {
  const body = slide.querySelector(".body"), place = slide.querySelector(".slide").getBoundingClientRect();
  const parts = slide.querySelectorAll(".slide :is(h1, h2, img, p, li, td, footer)");
  const out = [...parts].map(part => part.getBoundingClientRect()).filter(at =>
    at.left < place.left || at.right > place.right || at.top < place.top || at.bottom > place.bottom);
  const cut = body.scrollHeight > body.clientHeight + 1 || body.scrollWidth > body.clientWidth + 1;
  return {id: slide.id, kind: slide.className, out: out.length, cut,
    size: parseFloat(getComputedStyle(body).fontSize), unset: slide.querySelectorAll("mjx-merror").length};
})"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A site of one chapter."""
    for folder in ("book", "_images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "book" / "09_dots.html").write_text(CHAPTER, "utf8")
    (tmp_path / "book" / "quizzes.html").write_text(QUIZ, "utf8")
    Image.new("RGB", (800, 300)).save(tmp_path / "_images" / "wide.png")
    Image.new("RGB", (400, 400)).save(tmp_path / "_images" / "square.png")
    return tmp_path


def test_the_rule_decides_what_is_shown(small: Path) -> None:
    slides.write(small)
    deck = BeautifulSoup((small / "slides" / "09_dots.html").read_text("utf8"), "html.parser")
    sections = deck.select("main > section")
    assert [" ".join(slide["class"]) for slide in sections] == [
        *("title", "plan", "section", "figure wide", "figure", "box", "equation", "section", "table"),
        *("quiz", "exercise"),
    ]
    shown = [" ".join(slide.select_one(".slide").get_text(" ").split()) for slide in sections]
    assert shown[0].startswith("9 · Dots What dots do.")
    assert "Counting Numbers You need a ruler." in shown[1]
    assert shown[2].startswith("Counting How many?")
    assert "See the dots. In \\(a. B\\) there are two." in shown[3]
    assert shown[4].startswith("Finer")
    assert shown[5].startswith("Definition 1 (Dot) A dot.")
    assert "Hence" in shown[6]
    assert "1\xa0±\xa02" in str(sections[8].get_text())
    assert "Which?" in shown[9]
    assert shown[10].startswith("Exercise 1 Do it.")
    assert "Aside." in sections[3].select_one("aside").get_text()
    assert sections[2].select_one("a")["href"] == "../book/08_lines.html"
    assert sections[3].img["alt"] == "Dots."
    assert "style" not in sections[3].img.attrs  # its width on the page is not that of a slide
    assert (small / "slides" / sections[3].img["src"]).resolve() == small / "_images" / "wide.png"
    for hidden in ("draw()", "By looking", "check(", "secret", "Books.", "Prose.", "Not here", "row"):
        assert hidden not in deck.main.get_text()
    assert deck.find("script", src="../_static/mathjax/tex-chtml.js")


def test_a_page_that_is_no_chapter_is_named(small: Path) -> None:
    (small / "book" / "09_dots.html").write_text("<article><p>Nothing</p></article>", "utf8")
    with pytest.raises(BookError, match="no slides without 'article h1' in 'Nothing'"):
        slides.write(small)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True)
    yield context.new_page()
    context.close()


def show(page: Page, deck: Path) -> None:
    page.goto(deck.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")


def number(page: Page) -> int:
    page.wait_for_timeout(250)
    return int(page.url.partition("#")[2] or 1)


@pytest.mark.slow
@needs_chromium
def test_no_slide_of_any_chapter_is_cut(page: Page, built: Path) -> None:
    """Nothing sticks out at 1280 × 720, text stays legible, formulas are set, and no file is missing."""
    wrong: list[str] = []
    page.on("console", lambda m: m.type == "error" and wrong.append(f"{page.url}: {m.text}"))
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"{page.url}: {request.url} failed"))
    kinds: Counter[str] = Counter()
    decks = sorted((built / "slides").glob("*.html"))
    assert [deck.name for deck in decks] == [
        path.name for path in sorted((built / "book").glob("[0-9]*.html"))
    ]
    for deck in decks:
        show(page, deck)
        found = page.evaluate(MEASURE)
        if deck.stem != SAMPLE.stem:
            here = Counter(slide["kind"] for slide in found)
            notebook = nbformat.read(Book().pages / f"{deck.stem}.ipynb", as_version=4)
            assert here["quiz"] == len(QUESTIONS[int(deck.stem[:2])]), deck.name
            assert here["exercise"] == len(exercises(notebook)), deck.name
        for slide in found:
            kinds[slide["kind"]] += 1
            if slide["out"] or slide["cut"] or slide["unset"] or slide["size"] < 16:
                wrong.append(f"{deck.name}: {slide}")
        assert page.evaluate("document.querySelectorAll('mjx-container').length") > 0 or "sample" in deck.name
    assert not wrong, "\n".join(wrong)
    assert min(kinds["figure"], kinds["table"], kinds["box"], kinds["equation"]) > 10


@pytest.mark.slow
@needs_chromium
def test_keys_buttons_and_wheel_move_on(page: Page, built: Path) -> None:
    show(page, built / "slides" / "05_bias_adaptation.html")
    last = page.locator("main > section").count()
    for key, expected in (
        ("ArrowRight", 2),
        (" ", 3),
        ("PageDown", 4),
        ("ArrowUp", 3),
        ("End", last),
        ("Home", 1),
    ):
        page.keyboard.press(key)
        assert number(page) == expected, key
    page.get_by_label("Next slide").click()
    assert number(page) == 2
    page.mouse.wheel(0, 500)
    page.wait_for_timeout(800)
    assert number(page) == 3
    page.keyboard.press("n")
    assert page.locator("aside").first.is_visible()
    assert number(page) == 3


@pytest.mark.slow
@needs_chromium
def test_the_window_with_notes_follows_and_leads(page: Page, built: Path) -> None:
    show(page, built / "slides" / "05_bias_adaptation.html")
    with page.expect_popup() as opened:
        page.keyboard.press("s")
    notes = opened.value
    notes.wait_for_selector("html[data-ready]", state="attached")
    assert notes.locator("aside").first.is_visible()
    page.keyboard.press("ArrowRight")
    assert (number(page), number(notes)) == (2, 2)
    notes.keyboard.press("ArrowRight")
    assert (number(notes), number(page)) == (3, 3)


@pytest.mark.slow
@needs_chromium
def test_one_slide_a_page_in_print(page: Page, built: Path) -> None:
    show(page, built / "slides" / "03_sparse_autoencoders.html")
    printed = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == page.locator("main > section").count()
    assert set(re.findall(rb"/MediaBox\s*\[0 0 (\d+)(?:\.\d+)? (\d+)", printed)) == {(b"960", b"540")}


@pytest.mark.slow
@needs_chromium
def test_no_serious_barrier(page: Page, built: Path) -> None:
    show(page, built / "slides" / "02_identifiability.html")
    barriers = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not barriers, "\n".join(f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in barriers)
