"""Sphinx extension: what autodoc needs to know about the library for the API reference.

Parameters of a dataclass come from its docstring and from ``metadata["help"]`` of its fields, the source of
``--help`` too. Names in roles and signatures may be short (`train`, `sae_lib.Rows`); those of other packages
stay plain text, since the site is built without a network.
"""

import dataclasses
import re
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import sae_lib

# signatures name its class, and the library imports it only where it is used
import sae_lib.kernels.screen

PACKAGES = ("sae_lib", "sae_experiments")
# a constant with a longer value is shown only where a page says so
LONGEST_VALUE = 90
HIDDEN = "\0"
# a field of several parameters, "htf, ltf"
TOGETHER = re.compile(r"^:(?:param|ivar) \w+(?:, \w+)+:")
LINES = re.compile(r"<dl>\n((?:<dd>.*?</dd>\n)+)</dl>", re.DOTALL)
DD = re.compile(r"<(/?)dd>")
WORD = re.compile(r"\w+")
# code, a role, or a bar, which stands for a modulus and not for a substitution
BAR = re.compile(r"(``.+?``|`[^`]+`)|\|")


def prepare(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Hide the colons of a property's text from napoleon, which takes what stands before one for a type."""
    if what == "property":
        lines[:] = [line.replace(":", HIDDEN) for line in lines]


def complete(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """List all parameters of a dataclass: those that its docstring explains, then those with help."""
    if what == "data" and item.__doc__ == type(item).__doc__:
        lines.clear()  # a constant inherits its type's
    lines[:] = [BAR.sub(_escaped, line.replace(HIDDEN, ":")) for line in lines]
    # a space within a name would make its first part a type
    lines[:] = [
        TOGETHER.sub(lambda names: names[0].replace(", ", ",\N{ZERO WIDTH SPACE}"), line) for line in lines
    ]
    if what != "class" or not (dataclasses.is_dataclass(item) or hasattr(item, "_fields")):
        return
    lines[:] = [re.sub(r"^:ivar (?=\w)", ":param ", line) for line in lines]
    explained = {
        name for line in lines if line.startswith(":param ") for name in WORD.findall(line.split(":")[1])
    }
    fields = dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()
    helped = [
        f":param {field.name}: {BAR.sub(_escaped, field.metadata['help'])}"
        for field in fields
        if field.init and field.name not in explained and "help" in field.metadata
    ]
    starts = [number for number, line in enumerate(lines) if line.startswith(":param ")]
    ends = [n for n in range(starts[-1] + 1, len(lines)) if not lines[n].startswith(" ")] if starts else []
    end = ends[0] if ends else len(lines)
    lines[end:end] = helped if starts else ["", *helped]


def _escaped(bar: re.Match[str]) -> str:
    return bar[1] or r"\|"


def choose_members(app: Sphinx, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Show short constants, which have no docstring of their own."""
    return False if what == "module" and name.isupper() and len(repr(item)) <= LONGEST_VALUE else None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Node | None:
    """Link a name that Sphinx does not find to where it is documented.

    A type of a signature that is on no page stays text, and a role too where it names something of the
    library or another package's; any other role is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    name = str(node["reftarget"]).removeprefix("sae_lib.")
    home = f"sae_lib.{sae_lib._EXPORTS[name]}.{name}" if name in sae_lib._EXPORTS else ""
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    matches = [full for full in objects if full == home or full.endswith(f".{name}")]
    matches = [full for full in matches if full == home] or matches
    places = {(objects[full].docname, objects[full].node_id) for full in matches}
    if len(places) == 1:
        return make_refnode(app.builder, node["refdoc"], *places.pop(), text)
    return text if "refexplicit" not in node or _exists(name) else None


def _exists(name: str) -> bool:
    """Whether some module that autodoc has imported has such a name."""
    first = name.partition(".")[0]
    return first in sys.modules or any(
        hasattr(module, first) for key, module in list(sys.modules.items()) if key.startswith(PACKAGES)
    )


def mend_signatures(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Make blocks of the lines of a long signature: Sphinx writes a definition list without terms."""
    if "body" in context:
        context["body"] = LINES.sub(_blocks, context["body"])


def _blocks(lines: re.Match[str]) -> str:
    return '<div class="sig-lines">' + DD.sub(r"<\1div>", lines[1]) + "</div>"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", prepare, priority=100)
    app.connect("autodoc-process-docstring", complete, priority=900)
    app.connect("autodoc-skip-member", choose_members)
    app.connect("missing-reference", resolve)
    app.connect("html-page-context", mend_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
