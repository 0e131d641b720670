"""What MkDocs is told beyond mkdocs.yml: pages made at build time, links rewritten, pictures put into the page.

Warnings are errors there, so everything that is wrong is a warning here.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import material
from mkdocs.structure.files import File, Files

from cli_reference import cli_reference
from repository import NAMED, ROOT, linked_sources, repository_path, rewritten, source_page
from svg import colours

log = logging.getLogger("mkdocs.hooks.elmoe")

PICTURE = re.compile(r'<p>\s*<img alt="([^"]*)" src="([^"]+\.svg)"[^>]*/?>\s*</p>')
LOADED = re.compile(
    r"""<(?:script|link(?![^>]*\brel=["']?(?:canonical|prev|next))|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)
IMPORTED = re.compile(r"""(?:@import|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")


def on_files(files: Files, config: Any) -> Files:
    """Pages that are not files of `docs/`."""
    made = {place: (ROOT / source).read_text(encoding="utf-8") for source, place in NAMED.items()}
    made["reference/cli.md"] = cli_reference()
    made |= {f"source/{path}.md": source_page(path) for path in sorted(linked_sources())}
    made["assets/iframe-worker.js"] = search_from_disk()
    made["assets/site.css"] = stylesheet()
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def stylesheet() -> str:
    """Pictures in the colours of the page's scheme, and wide ones scrolled on a phone."""
    return (
        f"[data-md-color-scheme=default] .picture {{ {colours(dark=False)} }}\n"
        f"[data-md-color-scheme=slate] .picture {{ {colours(dark=True)} }}\n"
        ".picture-frame { overflow-x: auto; margin: 1.2em 0; text-align: left; width: auto; max-width: none }\n"
        ".picture-frame .picture { min-width: 600px }\n"
        ".md-grid { max-width: 76rem }\n"
        ".md-typeset table:not([class]) { font-size: .62rem }\n"
        ".doc-label-class-attribute, .doc-label-instance-attribute, .doc-label-module-attribute { display: none }\n"
    )


def search_from_disk() -> str:
    """Browsers start no worker from a file on disk; this one starts the theme's search worker from its text."""
    (worker,) = (Path(material.__file__).parent / "templates" / "assets" / "javascripts" / "workers").glob("search*.js")
    text = json.dumps(worker.read_text(encoding="utf-8")).replace("</", "<\\/")
    return (
        'if (location.protocol === "file:") {\n'
        "  const Plain = window.Worker;\n"
        f"  const text = {text};\n"
        "  window.Worker = class extends Plain {\n"
        '    constructor() { super(URL.createObjectURL(new Blob([text], { type: "text/javascript" }))); }\n'
        "  };\n"
        "}\n"
    )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository become links of the site."""
    place = page.file.src_uri
    if place.startswith("source/") or place == "reference/cli.md":
        return markdown
    return rewritten(markdown, repository_path(place))


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """Our pictures become part of the page, so that they follow its light and dark scheme."""

    def inlined(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.dest_uri), found[2]))
        text = (Path(config.docs_dir) / place).read_text(encoding="utf-8")
        if 'class="picture"' not in text:
            return found[0]
        return f'<figure class="picture-frame" role="img" aria-label="{found[1]}">{text}</figure>'

    return PICTURE.sub(inlined, html)


def on_post_build(config: Any) -> None:
    """The site must open without a network."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        pattern = {".html": LOADED, ".css": IMPORTED}.get(path.suffix)
        if pattern is None:
            continue
        for address in sorted(set(pattern.findall(path.read_text(encoding="utf-8")))):
            log.warning("%s loads %s; a page must open without a network", path.relative_to(config.site_dir), address)
