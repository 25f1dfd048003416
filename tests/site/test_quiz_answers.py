"""No answer to a quiz question reaches a student."""

import html
import re
from pathlib import Path

import pytest
from built_site import CHAPTERS, documents

from tools import quizzes
from tools.layout import REPOSITORY

QUESTIONS = quizzes.read((REPOSITORY / "chapters" / quizzes.PAGE).read_text("utf8"))


def words(text: str) -> str:
    """Plain text in one line, without what Markdown and HTML do to it."""
    bare = re.sub(r"\\n|[*`]|</?[a-z][^>]*>", " ", html.unescape(text)).replace("’", "'")
    return " ".join(bare.split())


def plainest(text: str) -> str:
    """The longest stretch without a formula: the same wherever the text is shown."""
    return max(re.split(r"\$[^$]*\$|[\"'`*(){}\[\]:]", " ".join(text.split())), key=len).strip()


@pytest.mark.slow
def test_no_answer_reaches_the_site_and_all_reach_instructors(built: Path) -> None:
    instructor = words((built.parent / "editions" / "instructor" / quizzes.PAGE).read_text("utf8"))
    page = words((built / "book" / "quizzes.html").read_text("utf8"))
    folders = (built / "book", built / "slides", built / "student", built / "_sources")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [*(built.parent / "editions" / "student").glob("*"), built / "searchindex.js"]
    public = {path: words(path.read_text("utf8")) for path in files}
    expected = {*documents(), *(f"slides/{name}.html" for name in CHAPTERS)}
    expected |= {f"student/{name}.ipynb" for name in CHAPTERS}
    assert {built / name for name in expected} <= public.keys()
    for question in (question for questions in QUESTIONS.values() for question in questions):
        reason = words(plainest(question.why))
        assert len(reason) > 20
        assert reason in instructor
        assert f"Answer: {'abcd'[question.right]}." in instructor
        assert words(plainest(question.text)) in page
        assert not [path.name for path, text in public.items() if reason in text], question.number
