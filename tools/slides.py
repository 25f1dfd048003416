"""Slides of every chapter, made from its page of the built site: `slides/NN_name.html`.

A rule decides what is shown: the title with what the chapter does; each section's heading with its first
sentences; each figure and each table alone, with the sentences that follow it; definitions, theorems,
algorithms and labelled equations; warnings and the box "Take away"; questions of the quiz and exercises,
without their answers. All other prose goes into the notes for the speaker. Code and proofs are left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote, urljoin, urlsplit

from bs4 import BeautifulSoup, Tag
from PIL import Image

from tools.layout import BookError, template

SENTENCE = re.compile(r"(?<=[.?!])\s+")
# characters of text: under a heading, beside a figure
LEAD, CAPTION = 420, 300
# a picture wider than this has its sentences below, any other beside it
WIDE = 1.9
# of a table, with its head; a longer one is for reading
ROWS = 14
THEOREMS = {"definition", "theorem", "proposition", "lemma", "algorithm"}
BOXES = {"admonition-take-away", "warning", "exercise", *THEOREMS}


@dataclass
class Slide:
    """One slide: HTML of its body, and what the speaker may say."""

    kind: str
    title: str
    body: str
    caption: str = ""
    before: str = ""  # stands in for the caption where no sentence follows
    notes: list[str] = field(default_factory=list)

    @property
    def shows_result(self) -> bool:
        """Whether it is a figure or a table, to which sentences belong."""
        return self.kind.split()[0] in ("figure", "table")


def write(pages: Path) -> None:
    """Write a deck for every chapter of the site in the folder `pages`; they need nothing but that site."""
    folder = pages / "slides"
    folder.mkdir(exist_ok=True)
    quiz = pages / "book" / "quizzes.html"
    questions = BeautifulSoup(quiz.read_text("utf8"), "html.parser") if quiz.is_file() else None
    for path in sorted((pages / "book").glob("[0-9][0-9]_*.html")):
        page = BeautifulSoup(path.read_text("utf8"), "html.parser")
        _prepare(page, path.name)
        asked = questions.find("section", id=f"chapter-{int(path.name[:2])}") if questions else None
        shown = slides(page, asked, folder)
        title = _one(page, "article h1").get_text().strip()
        mathjax = "\n".join(str(tag) for tag in page.find_all("script") if "athjax" in str(tag).lower())
        deck = template("slides.html").render(title=title, mathjax=mathjax, slides=shown, name=path.name)
        (folder / path.name).write_text(deck, "utf8")


def slides(page: BeautifulSoup, quiz: Tag | None, folder: Path) -> list[Slide]:
    """Return the slides of a chapter in order; pictures are found relative to `folder`."""
    heading = _one(page, "article h1")
    box = " ".join(map(_inner, page.select("article .admonition-in-this-chapter > p:not(.admonition-title)")))
    does, _, needs = box.partition("<strong>You need</strong>")
    deck = [Slide("title", _inner(heading), f"<p>{does}</p>")]
    sections = [s for s in page.select("article section:has(> h1) > section") if s["id"] != "further-reading"]
    names = "".join(f"<li>{_inner(_one(s, 'h2'))}</li>" for s in sections if s["id"] != "exercises")
    if names:
        plan = f"<ol>{names}</ol>" + (f"<p><strong>You need</strong>{needs}</p>" if needs else "")
        deck.append(Slide("plan", "In this chapter", plan))
    exercises: list[Slide] = []
    for section in sections:
        parts = _section(section, folder)
        if section["id"] == "exercises":
            exercises = [slide for slide in parts if slide.kind == "exercise"]
        else:
            deck += parts
    questions = quiz.select(".quiz-question") if quiz else []
    return deck + [Slide("quiz", "Question", str(question)) for question in questions] + exercises


def _section(section: Tag, folder: Path) -> list[Slide]:
    """The slides of one section with its subsections, the first of them its heading."""
    title = _inner(_one(section, "h2"))
    deck = [Slide("section", title, "")]
    unsaid = ""  # the last paragraph, for what no sentence follows
    for part in _parts(section):
        kinds = set(part.get("class") or ())
        now = deck[-1]
        if part.name == "h3":
            title = _inner(part)
        elif "cell" in kinds:
            deck += _results(part, title, _last_sentence(unsaid), folder)
            continue
        elif part.name == "p" and now.kind == "section" and not now.body:
            lead, rest = _sentences(part, LEAD)
            now.body = f"<p>{lead}</p>"
            now.notes += [f"<p>{rest}</p>"] * bool(rest)
        elif part.name == "p" and now.shows_result and not now.caption:
            now.caption, rest = _sentences(part, CAPTION)
            now.notes += [f"<p>{rest}</p>"] * bool(rest)
        elif kinds & BOXES and (name := part.find("p", class_="admonition-title")):
            name.extract()
            kind = "exercise" if "exercise" in kinds else "box"
            deck.append(Slide(kind, _inner(name), part.decode_contents()))
        elif part.find(class_="eqno") and "math" in kinds:
            deck.append(Slide("equation", title, f"<p>{_last_sentence(unsaid)}</p>{part}"))
        elif part.name in ("p", "ul", "ol", "div") and not kinds & {"proof", "solution"}:
            now.notes.append(str(part))
        unsaid = _inner(part) if part.name == "p" else ""
    return deck


def _results(cell: Tag, title: str, before: str, folder: Path) -> Iterator[Slide]:
    """A slide for each figure and each table that a cell shows."""
    for shown in cell.select(".cell_output img, .cell_output table"):
        kind = "table"
        if shown.name == "img":
            width, height = Image.open(folder / unquote(str(shown["src"]))).size
            kind = "figure" if width < WIDE * height else "figure wide"
            shown.attrs.pop("style", None)  # its width on the page: a slide gives it all there is
        elif len(shown.find_all("tr")) > ROWS:
            continue
        body = str(shown).replace(" ±", "&nbsp;±").replace("± ", "±&nbsp;").replace(" %", "&nbsp;%")
        yield Slide(kind, title, body, before=before)


def _parts(section: Tag) -> Iterator[Tag]:
    for child in section.find_all(True, recursive=False):
        if child.name == "section":
            yield from _parts(child)
        else:
            yield child


def _prepare(page: BeautifulSoup, name: str) -> None:
    """Take out what slides do not show, and let links lead from the folder of the slides."""
    for tag in page.select("article :is(.headerlink, .cell_input, .solution, div.highlight)"):
        tag.decompose()
    for tag in page.select("article :is(.proof, .exercise) > section"):
        tag.unwrap()
    for tag in page.select("article :is([href], [src])"):
        attribute = "href" if tag.has_attr("href") else "src"
        address = urljoin(f"book/{name}", str(tag[attribute]))
        if not urlsplit(address).scheme:
            tag[attribute] = f"../{normpath(address)}"
    for tag in page.select("article [id]:not(section)"):
        del tag["id"]


def _sentences(paragraph: Tag, limit: int) -> tuple[str, str]:
    """The first sentences of a paragraph, at least one and together no longer than `limit`, and the rest."""
    html = _inner(paragraph)
    ends = _ends(html)
    if not ends or html[-1] not in ",:":  # what leads on to a formula or a list makes no sense without it
        ends.append(len(html))
    end = max(
        (end for end in ends if len(BeautifulSoup(html[:end], "html.parser").get_text()) <= limit),
        default=ends[0],
    )
    return html[:end].strip(), html[end:].strip()


def _last_sentence(html: str) -> str:
    return html[max([end for end in _ends(html) if end < len(html)], default=0) :]


def _ends(html: str) -> list[int]:
    """Where a sentence ends and no element and no formula is cut."""
    ends = [match.end() for match in SENTENCE.finditer(html)]
    return [end for end in ends if len(re.findall(r"<\w", html[:end])) == html[:end].count("</")]


def _one(tag: Tag, selector: str) -> Tag:
    match = tag.select_one(selector)
    if match is None:
        raise BookError(f"no slides without {selector!r} in {tag.get_text()[:80]!r}")
    return match


def _inner(tag: Tag) -> str:
    return tag.decode_contents().strip()
