"""Slides of every chapter, made from its page of the built site: `slides/NN_name.html`.

A rule decides what is shown: the title with what the chapter does; each section's heading with its first
sentences; each figure and each table alone, with the sentences that follow it; definitions, theorems,
algorithms and labelled equations; the box "Take away"; questions of the quiz and exercises, without their
answers. All other prose goes into the notes for the speaker. Code and proofs are left out.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from posixpath import normpath
from string import Template
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

from tools import quizzes

TEMPLATE = Template(Path(__file__).with_name("slides.html").read_text("utf8"))
SENTENCE = re.compile(r"(?<=[.?!:])\s+")
# characters of text: under a heading, beside a figure
LEAD, CAPTION = 420, 300
# a picture wider than this has its sentences below, any other beside it
WIDE = 1.9
# of a table, with its head; a longer one is for reading
ROWS = 14
UNLISTED = {"exercises", "further-reading"}
BOXES = {"admonition-take-away", "exercise", "definition", "theorem", "proposition", "lemma", "algorithm"}


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
    quiz = pages / "book" / quizzes.PAGE.replace(".md", ".html")
    questions = BeautifulSoup(quiz.read_text("utf8"), "html.parser") if quiz.is_file() else None
    for path in sorted((pages / "book").glob("[0-9][0-9]_*.html")):
        page = BeautifulSoup(path.read_text("utf8"), "html.parser")
        _prepare(page, path.name)
        asked = questions.find("section", id=f"chapter-{int(path.name[:2])}") if questions else None
        made = list(slides(page, asked, folder))
        (folder / path.name).write_text(_deck(page, made, path.name), "utf8")


def slides(page: BeautifulSoup, quiz: Tag | None, folder: Path) -> list[Slide]:
    """The slides of a chapter in order; pictures are found relative to `folder`."""
    article = page.find("article")
    heading = article.find("h1")
    intro = heading.find_next_sibling("div", class_="admonition-in-this-chapter")
    box = " ".join(_inner(p) for p in intro.find_all("p", class_=None)) if intro else ""
    does, _, needs = box.partition("<strong>You need</strong>")
    made = [Slide("title", _inner(heading), f"<p>{does}</p>")]
    names = [h for h in article.find_all("h2") if h.parent["id"] not in UNLISTED]
    plan = "".join(f"<li>{_inner(h)}</li>" for h in names)
    made.append(Slide("plan", "In this chapter", f"<ol>{plan}</ol><p><strong>You need</strong>{needs}</p>"))
    exercises: list[Slide] = []
    for section in heading.parent.find_all("section", recursive=False):
        name = section["id"]
        if name == "exercises":
            exercises = [s for s in _section(section, folder) if s.kind == "exercise"]
        elif name not in UNLISTED:
            made += _section(section, folder)
    made += [Slide("quiz", "Question", str(item)) for item in quiz.select(".quiz-question")] if quiz else []
    return made + exercises


def _section(section: Tag, folder: Path) -> list[Slide]:
    """The slides of one section with its subsections."""
    made: list[Slide] = []
    title = heading = ""
    unsaid = ""  # the last paragraph before a picture or an equation, where none follows
    for part in _parts(section):
        kinds = set(part.get("class") or ())
        if part.name in ("h2", "h3"):
            title, heading = _inner(part), part.name
        elif part.name == "p" and heading == "h2":
            lead, rest = _sentences(part, LEAD)
            made.append(Slide("section", title, f"<p>{lead}</p>", notes=_paragraphs(rest)))
            heading = ""
        elif part.name == "p" and made and made[-1].shows_result and not made[-1].caption:
            made[-1].caption, rest = _sentences(part, CAPTION)
            made[-1].notes += _paragraphs(rest)
        elif "cell" in kinds:
            for shown in part.select(".cell_output img, .cell_output table"):
                kind = "table"
                if shown.name == "img":
                    kind = "figure" if _shape(folder / unquote(str(shown["src"]))) < WIDE else "figure wide"
                elif len(shown.find_all("tr")) > ROWS:
                    continue
                body = str(shown).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
                made.append(Slide(kind, title, body, before=_last_sentence(unsaid)))
        elif kinds & BOXES and "admonition-title" in str(part):
            name = part.find("p", class_="admonition-title").extract()
            kind = "exercise" if "exercise" in kinds else "box"
            made.append(Slide(kind, _inner(name), part.decode_contents()))
        elif part.find(class_="eqno") and "math" in kinds:
            made.append(Slide("equation", title, f"<p>{_last_sentence(unsaid)}</p>{part}"))
        elif part.name in ("p", "ul", "ol", "div") and made and not kinds & {"proof", "solution", "cell"}:
            made[-1].notes.append(str(part))
        if "cell" not in kinds:
            unsaid = _inner(part) if part.name == "p" else ""
    return made


def _parts(section: Tag) -> Iterator[Tag]:
    for child in section.find_all(True, recursive=False):
        if child.name == "section":
            yield from _parts(child)
        else:
            yield child


def _prepare(page: BeautifulSoup, name: str) -> None:
    """Take out what slides do not show, and let links lead from the folder of the slides."""
    for tag in page.select("article .headerlink, article .cell_input, article .solution, article div.highlight"):
        tag.decompose()
    for tag in page.select("article .proof > section, article .exercise > section"):
        tag.unwrap()
    for tag in page.select("article [href], article [src]"):
        attribute = "href" if tag.has_attr("href") else "src"
        address = str(tag[attribute])
        if not urlsplit(address).scheme:
            tag[attribute] = f"../book/{name}{address}" if address[0] == "#" else normpath(f"../book/{address}")
    for tag in page.select("article [id]:not(section)"):
        del tag["id"]


def _sentences(paragraph: Tag, limit: int) -> tuple[str, str]:
    """The first sentences of a paragraph, at least one and together no longer than `limit`, and the rest."""
    html = _inner(paragraph)
    ends = [found.end() for found in SENTENCE.finditer(html) if _whole(html[: found.end()])] + [len(html)]
    fitting = [end for end in ends if _length(html[:end]) <= limit]
    end = max(fitting, default=ends[0])
    return html[:end].strip(), html[end:].strip()


def _last_sentence(html: str) -> str:
    starts = [found.end() for found in SENTENCE.finditer(html) if _whole(html[: found.end()])]
    return html[max([start for start in starts if start < len(html)], default=0) :]


def _whole(html: str) -> bool:
    """Whether no element and no formula is cut at the end."""
    return len(re.findall(r"<\w", html)) == html.count("</")


def _length(html: str) -> int:
    return len(BeautifulSoup(html, "html.parser").get_text())


def _paragraphs(html: str) -> list[str]:
    return [f"<p>{html}</p>"] if html else []


def _inner(tag: Tag) -> str:
    return tag.decode_contents().strip()


def _shape(picture: Path) -> float:
    """Width over height of a PNG file."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width / height


def _deck(page: BeautifulSoup, made: list[Slide], name: str) -> str:
    title = page.find("h1").get_text().strip()
    sections = []
    for number, slide in enumerate(made, start=1):
        level = "h1" if slide.kind == "title" else "h2"
        said = slide.caption or slide.before
        caption = f'<div class="caption"><p>{said}</p></div>' if said else ""
        notes = f'<aside aria-label="Notes">{"".join(slide.notes)}</aside>' if slide.notes else ""
        sections.append(
            f'<section id="{number}" class="{slide.kind}"><div class="slide"><{level}>{slide.title}</{level}>'
            f'<div class="body"><div class="shown">{slide.body}</div>{caption}</div>'
            f'<footer><a href="../book/{name}">{escape(title)}</a> <span>{number} / {len(made)}</span></footer>'
            f"</div>{notes}</section>"
        )
    mathjax = "\n".join(str(tag) for tag in page.find_all("script") if "athjax" in str(tag).lower())
    return TEMPLATE.substitute(title=escape(title), mathjax=mathjax, slides="\n".join(sections))
