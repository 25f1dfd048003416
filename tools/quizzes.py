"""Quiz questions of the chapters: `chapters/quizzes.md` holds them with their answers.

The site gets a page without the answers, instructors a file with them. In the source a question has a number
(chapter and count), its text, its choices as a task list in which the right one is ticked, and why.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools.layout import Book, BookError, template

PAGE = "quizzes.md"
CHAPTER = re.compile(r"^## Chapter (\d+)$", re.MULTILINE)
NUMBER = re.compile(r"^### (\d+\.\d+)$", re.MULTILINE)
CHOICE = re.compile(r"^- \[([ x])\] (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """One question: its number ("5.2"), text, choices, which of them is right (from 0), and why."""

    number: str
    text: str
    choices: tuple[str, ...]
    right: int
    why: str

    def asked(self) -> str:
        """Return the question with its choices, as Markdown."""
        choices = "\n".join(f"- **{chr(97 + i)}** {choice}" for i, choice in enumerate(self.choices))
        return f"**{self.number}** {self.text}\n\n{choices}"


def read(source: str) -> dict[int, list[Question]]:
    """Return the questions of every chapter."""
    _, *parts = CHAPTER.split(source)
    return {
        int(chapter): [
            _question(number, body, int(chapter))
            for number, body in zip(*[iter(NUMBER.split(text)[1:])] * 2, strict=True)
        ]
        for chapter, text in zip(parts[::2], parts[1::2], strict=True)
    }


def _question(number: str, body: str, chapter: int) -> Question:
    choices = CHOICE.findall(body)
    text, *_, why = CHOICE.split(body)
    ticked = [i for i, (mark, _) in enumerate(choices) if mark == "x"]
    if len(ticked) != 1 or not 3 <= len(choices) <= 4:
        raise BookError(
            f"quiz {number} has {len(choices)} choices, {len(ticked)} of them ticked; "
            "give it three or four, and tick one with [x]"
        )
    if not text.strip() or not why.strip() or number.split(".")[0] != str(chapter):
        raise BookError(f"quiz {number} of chapter {chapter} needs its chapter's number, a text and a reason")
    return Question(number, text.strip(), tuple(choice for _, choice in choices), ticked[0], why.strip())


def text(book: Book) -> str:
    """Return the page of the site, questions alone; empty without a source."""
    chapters = [(number, _title(book, number), questions) for number, questions in _of(book).items()]
    return template("quizzes.md").render(chapters=chapters) if chapters else ""


def write_answers(book: Book, folder: Path) -> None:
    """Write the questions with answers to `folder` for instructors; nothing without a source."""
    parts = ["# Quiz questions with answers"]
    for chapter, questions in _of(book).items():
        parts.append(f"## Chapter {chapter}")
        for question in questions:
            parts += [question.asked(), f"**Answer: {chr(97 + question.right)}.** {question.why}"]
    if len(parts) > 1:
        (folder / PAGE).write_text("\n\n".join(parts) + "\n", "utf8")


def _of(book: Book) -> dict[int, list[Question]]:
    path = book.root / "chapters" / PAGE
    return read(path.read_text("utf8")) if path.is_file() else {}


def _title(book: Book, chapter: int) -> str:
    """A link to the chapter, by its title, and one to its slides."""
    notebook = next(book.pages.glob(f"{chapter:02d}_*.ipynb"), None)
    if not notebook:
        raise BookError(f"there are quiz questions on chapter {chapter}, but book/ has no such notebook")
    heading = nbformat.read(notebook, as_version=4).cells[0].source.split("\n")[0]
    title = re.sub(r"^# (\d+ · )?", "", heading)
    return f'[{title}]({notebook.name}) · <a href="../slides/{notebook.stem}.html">slides</a>'
