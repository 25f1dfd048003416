"""Sphinx extension: what a page tells search engines and previews, and which notebook its buttons launch.

Every page gets a description, from its box *In this chapter* or its first paragraph. Where `html_baseurl` is
known, so that Sphinx writes canonical links, pages get preview tags too, and the site a `sitemap.xml`.

Where the theme has a repository, its launch buttons lead to the student edition of the chapter: it installs
what it needs, has stubs to fill in and no outputs yet. The committed notebook, which the theme would open, is
MyST for the book and reads badly elsewhere. Colab opens the edition as published with the site on the branch
gh-pages, Binder the repository at the release's tag, where `postBuild` has made the editions.
"""

import re
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin
from xml.sax.saxutils import escape as escape_xml

from docutils import nodes
from sphinx.application import Sphinx

PREVIEW = "_static/cover.png"
LONGEST = 200


def description(doctree: nodes.document | None, title: str, site: str) -> str:
    """Return one or two sentences about a page, at most LONGEST characters, or its name if it has no text."""
    if doctree is None:
        return f"{title}: {site}"
    boxes = [box for box in doctree.findall(nodes.admonition) if box.astext().startswith("In this chapter")]
    for place in (*boxes, doctree):
        for paragraph in place.findall(nodes.paragraph):
            if text := " ".join(paragraph.astext().split()):
                return shortened(text)
    return f"{title}: {site}"


def shortened(text: str) -> str:
    """Return the text cut after a sentence, else after a word with "…", where it is too long."""
    if len(text) <= LONGEST:
        return text
    start = text[: LONGEST - 1]
    if sentences := re.match(r".{60,}[.?!](?=\s)", start):
        return sentences[0]
    return (start.rpartition(" ")[0] or start) + "…"


def add_tags(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Add description and preview tags to one page."""
    site = app.config.html_title
    title = re.sub(r"<[^>]*>", "", context.get("title", "")) or page
    words = description(doctree, title, site)
    tags = [f'<meta name="description" content="{escape(words)}" />']
    if base := app.config.html_baseurl:
        preview = {
            "og:type": "article" if doctree else "website",
            "og:site_name": site,
            "og:title": title,
            "og:description": words,
            "og:url": context["pageurl"],
            "og:image": urljoin(base, PREVIEW),
        }
        tags += [f'<meta property="{name}" content="{escape(text)}" />' for name, text in preview.items()]
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])


def launch_editions(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document
) -> None:
    """Lead the theme's launch buttons to the student edition."""
    name = f"{PurePosixPath(page).name}.ipynb"
    branch = app.config.html_theme_options.get("repository_branch", "")
    edition = {
        "Colab": (f"/blob/{branch}/{page}.ipynb", f"/blob/gh-pages/student/{name}"),
        "Binder": (f"lab/tree/{page}.ipynb", f"lab/tree/_build/editions/student/{name}"),
    }
    for group in context.get("header_buttons", ()):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                committed, ours = edition[button["text"]]
                if committed not in button["url"]:
                    raise ValueError(f"{page}: no {committed} in {button['url']}: has the theme changed?")
                button["url"] = button["url"].replace(committed, ours)


def write_sitemap(app: Sphinx, error: Exception | None) -> None:
    """Write the addresses of all pages of the book to `sitemap.xml`."""
    if app.config.html_baseurl and not error:
        pages = sorted(urljoin(app.config.html_baseurl, f"{name}.html") for name in app.env.found_docs)
        lines = [f"  <url><loc>{escape_xml(page)}</loc></url>" for page in pages]
        Path(app.outdir, "sitemap.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n'
            '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
            + "\n".join(lines)
            + "\n</urlset>\n",
            "utf8",
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, after the theme, whose buttons are made at priority 501."""
    app.connect("html-page-context", add_tags, priority=900)
    app.connect("html-page-context", launch_editions, priority=900)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
