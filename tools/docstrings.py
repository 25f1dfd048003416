"""The library's docstrings as Markdown.

They are plain text: paragraphs, lists, indented blocks after ``::``, examples after ``>>>``, lists of arguments
(``name: text``, or ``name, name: text``, with what goes on indented), ``code``, and roles such as :func:`train`.
"""

import re
from collections.abc import Callable, Iterator

ENTRY = re.compile(r"((?:[a-z]\w*\*?|ce_\*)(?:, [a-z]\w*\*?)*): (.*)", re.DOTALL)
BULLET = re.compile(r"(\*|\d+\.) ")
# a role, code in double backticks, or a character that Markdown would take for its own
SPECIAL = re.compile(r":(?:func|class|meth|mod|attr):`([^`]+)`|``(.+?)``|([\[\]<>$\\{}|`~])", re.DOTALL)

Link = Callable[[str], str]


def markdown(docstring: str, link: Link) -> str:
    """Markdown for a docstring as :func:`ast.get_docstring` cleans it.

    link: gives the address of a name that a role names, "" where there is none.
    """
    return "\n\n".join(_parts(docstring, link))


def _parts(docstring: str, link: Link) -> Iterator[str]:
    for lines in _paragraphs(docstring):
        if lines[0].startswith(">>>"):
            yield _fence("pycon", lines)
        elif all(line.startswith("    ") or not line for line in lines):
            yield _fence("text", [line[4:] for line in lines])
        elif any(BULLET.match(line) for line in lines):
            yield "\n".join(_items(lines, BULLET, link))
        elif ENTRY.fullmatch(lines[0]):
            yield "\n".join(_items(lines, ENTRY, link))
        else:
            yield inline(_joined(lines), link)


def _paragraphs(docstring: str) -> Iterator[list[str]]:
    """Lines between blank ones; indented paragraphs that follow each other are one."""
    found: list[list[str]] = []
    for text in re.split(r"\n(?:[ ]*\n)+", docstring):
        lines = text.split("\n")
        if found and lines[0].startswith("    ") and found[-1][0].startswith("    "):
            found[-1] += ["", *lines]
        else:
            found.append(lines)
    yield from found


def _items(lines: list[str], begins: re.Pattern[str], link: Link) -> Iterator[str]:
    """A list; what stands before its first item, as a line or two of prose do, stays a paragraph."""
    items: list[list[str]] = []
    for line in lines:
        if not items or begins.match(line):
            items.append([])
        items[-1].append(line)
    for item in items:
        text = _joined(item)
        if begins is BULLET and (bullet := BULLET.match(text)):
            mark = "-" if bullet[1] == "*" else bullet[1]
            yield f"{mark} {inline(text[bullet.end() :], link)}"
        elif begins is ENTRY and (entry := ENTRY.fullmatch(text)):
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            yield f"- {names}: {inline(entry[2], link)}"
        else:
            yield inline(text, link) + "\n"


def inline(text: str, link: Link) -> str:
    """A line of text with its code, roles and special characters in Markdown."""

    def replaced(match: re.Match[str]) -> str:
        role, code, character = match.groups()
        if role:
            name = role.rsplit(".", 1)[-1]
            return f"[`{name}`]({address})" if (address := link(role)) else f"`{name}`"
        return f"`{' '.join(code.split())}`" if code else f"\\{character}"

    return SPECIAL.sub(replaced, text)


def _joined(lines: list[str]) -> str:
    # what introduces an indented block ends in one colon
    return re.sub(r"::$", ":", " ".join(line.strip() for line in lines))


def _fence(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
