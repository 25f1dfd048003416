"""The corpus of the installed packages' sources."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

from sae_lib.corpora.documents import Corpus, Document
from sae_lib.corpora.duplicates import first_of_each

# folders of tests, and of other projects' code
_TESTS = {"test", "tests", "_test", "_tests", "testing", "_testing", "idle_test"}
_VENDORED = {
    "_vendor", "vendor", "_vendored", "vendored", "extern", "externals", "_external", "third_party",
    "thirdparty", "site-packages", "node_modules",
}  # fmt: skip
_GENERATED_NAME = re.compile(r"(_pb2|_pb2_grpc|_generated|\.generated|_version|_versions)\.py$|^__editable__")
_GENERATED_HEADER = re.compile(
    r"generated (automatically )?(by|from|with|using|on|file|code)|auto-?(matically )?[ -]?generated|"
    r"@generated|do not (edit|modify)|don't edit",
    re.IGNORECASE,
)
# lines of a file in which a header is looked for
_HEADER_LINES = 12
# limits that data sets of code use: longest line, mean line, share of letters, characters
_LONGEST_LINE, _MEAN_LINE, _LETTERS, _LARGEST = 1000, 100, 0.25, 1_000_000
# characters of a file that are not white space; less is an empty module or a list of imports
_SMALLEST = 200
# the library's own text would change with every change of it
_OWN = "sae-lib"


def canonical(name: str) -> str:
    """Return a project's name as package indexes compare it: lower case, with hyphens.

    >>> sae_lib.corpora.packages.canonical("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def is_source(path: PurePosixPath) -> bool:
    """Whether a path names a Python file that is neither a test nor generated nor another project's code."""
    folders, name = set(path.parts[:-1]), path.name
    is_test = name == "conftest.py" or name.startswith("test_") or name.endswith(("_test.py", "_tests.py"))
    return (
        path.suffix == ".py"
        and not is_test
        and not (folders & (_TESTS | _VENDORED) or ".." in folders or _GENERATED_NAME.search(name))
    )


def is_written(text: str) -> bool:
    """Whether a text reads as code that people wrote.

    It is not if it is nearly empty or very large, if one of its first lines says that it was generated, if
    its lines are those of a table (one very long, or long on average), or if few of its characters are
    letters.
    """
    solid = len("".join(text.split()))
    if not _SMALLEST <= solid <= _LARGEST:
        return False
    lines = text.split("\n")
    if max(map(len, lines)) > _LONGEST_LINE or len(text) > _MEAN_LINE * len(lines):
        return False
    if _GENERATED_HEADER.search("\n".join(lines[:_HEADER_LINES])):
        return False
    return sum(map(str.isalpha, text)) >= _LETTERS * solid


def _texts(distribution: Distribution) -> Iterator[tuple[str, str]]:
    """Yield path and text of a project's sources; skip files that are missing or not UTF-8."""
    for file in distribution.files or ():
        path = PurePosixPath(file.as_posix())
        if not is_source(path):
            continue
        try:
            text = Path(str(distribution.locate_file(file))).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            continue
        if is_written(text):
            yield path.as_posix(), text


def installed_packages(projects: Collection[str] | None = None) -> Corpus:
    """Return the Python sources of the packages installed beside this one, sorted by project and path.

    Left out are tests, generated files, tables, nearly empty files, folders of vendored code
    (:func:`sae_lib.corpora.packages.is_source`, :func:`sae_lib.corpora.packages.is_written`) and copies, near
    ones among them, of earlier files (:func:`sae_lib.corpora.duplicates.first_of_each`). A document is named
    ``project/path``, and its group is the project: :meth:`Corpus.split` holds out whole projects. The text
    depends on the installed versions; its fingerprint identifies it. Takes some twenty seconds for 24,000
    files.

    Args:
        projects: Names of those to read, all others being left out; None reads every project.

    Raises:
        FileNotFoundError: A project is not installed, or there is no source in any.
    """
    installed: dict[str, Distribution] = {}
    for distribution in distributions():
        # the first one found is the one that Python imports
        installed.setdefault(canonical(distribution.metadata["Name"]), distribution)
    wanted = set(installed) - {_OWN} if projects is None else {canonical(name) for name in projects}
    if missing := sorted(wanted - set(installed)):
        raise FileNotFoundError(
            f"not installed: {', '.join(missing)}; expected names of installed projects; "
            f"run: pip install {' '.join(missing)}"
        )
    documents = [
        Document(f"{name}/{path}", text, name)
        for name in sorted(wanted)
        for path, text in sorted(set(_texts(installed[name])))
    ]
    kept = first_of_each([document.text for document in documents])
    if not kept:
        raise FileNotFoundError(
            f"no Python source in {', '.join(sorted(wanted)) or 'no project'}; name projects that have some"
        )
    licence = "each file has the licence of its project, the first part of its name"
    return Corpus("installed-packages", licence, tuple(documents[i] for i in kept))
