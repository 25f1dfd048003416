"""Quiz questions of the chapters: `chapters/quizzes.md` holds them with their answers.

The site gets a page without the answers, instructors a file with them. In the source a question has a number
(chapter and count), its text, its choices as a task list in which the right one is ticked, and why.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools.layout import Book

PAGE = "quizzes.md"
CHAPTER = re.compile(r"^## Chapter (\d+)$", re.MULTILINE)
NUMBER = re.compile(r"^### (\d+\.\d+)$", re.MULTILINE)
CHOICE = re.compile(r"^- \[([ x])\] (.+)$", re.MULTILINE)
INTRODUCTION = """\
# Quiz questions

Four or five questions on each chapter, to open a session with or to close it: one choice is right. Each can
be answered from its chapter. The same questions stand at the end of the chapter's slides. The answers, with
the likely mistakes, are not on the site: `make site` writes them to `_build/editions/instructor/quizzes.md`.
"""


class QuizError(Exception):
    """A question that cannot be used; the message names it and says what is wrong."""


@dataclass(frozen=True)
class Question:
    """One question: its number ("5.2"), text, choices, which of them is right (from 0), and why."""

    number: str
    text: str
    choices: tuple[str, ...]
    right: int
    why: str

    def asked(self) -> str:
        """The question with its choices, as Markdown."""
        choices = "\n".join(f"- **{chr(97 + i)}** {choice}" for i, choice in enumerate(self.choices))
        return f"**{self.number}** {self.text}\n\n{choices}"


def read(source: str) -> dict[int, list[Question]]:
    """The questions of every chapter. Raises QuizError for a question without exactly one right choice."""
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
        raise QuizError(
            f"quiz {number} has {len(choices)} choices, {len(ticked)} of them ticked; "
            "give it three or four, and tick one with [x]"
        )
    if not text.strip() or not why.strip() or number.split(".")[0] != str(chapter):
        raise QuizError(f"quiz {number} of chapter {chapter} needs its chapter's number, a text and a reason")
    return Question(number, text.strip(), tuple(choice for _, choice in choices), ticked[0], why.strip())


def text(book: Book) -> str:
    """The page of the site, questions alone; empty without a source."""
    made = [INTRODUCTION]
    for chapter, questions in _of(book).items():
        made.append(f"## Chapter {chapter}\n\n{_title(book, chapter)}")
        made += [f":::{{container}} quiz-question\n{question.asked()}\n:::" for question in questions]
    return "\n\n".join(made) + "\n" if len(made) > 1 else ""


def write_answers(book: Book, folder: Path) -> None:
    """Write the questions with answers to `folder` for instructors; nothing without a source."""
    made = ["# Quiz questions with answers"]
    for chapter, questions in _of(book).items():
        made.append(f"## Chapter {chapter}")
        for question in questions:
            answer = f"**Answer: {chr(97 + question.right)}.** {question.why}"
            made += [question.asked(), answer]
    if len(made) > 1:
        (folder / PAGE).write_text("\n\n".join(made) + "\n", "utf8")


def _of(book: Book) -> dict[int, list[Question]]:
    path = book.root / "chapters" / PAGE
    return read(path.read_text("utf8")) if path.is_file() else {}


def _title(book: Book, chapter: int) -> str:
    """A link to the chapter, by its title, and one to its slides."""
    notebook = next(book.pages.glob(f"{chapter:02d}_*.ipynb"), None)
    if not notebook:
        raise QuizError(f"there are quiz questions on chapter {chapter}, but book/ has no such notebook")
    heading = nbformat.read(notebook, as_version=4).cells[0].source.split("\n")[0]
    title = re.sub(r"^# (\d+ · )?", "", heading)
    return f'[{title}]({notebook.name}) · <a href="../slides/{notebook.stem}.html">slides</a>'
