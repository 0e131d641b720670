"""Files of the repository as pages of the site: where each one lies there, and links between them rewritten.

A page of `docs/` links to others as they lie in the repository, so that its links work there too. In the site the
README is the first page, and a source file that a page links to becomes a page of its own: the site needs nothing
from elsewhere. Knows nothing about MkDocs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
NAMED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/elmoe/data/tiny.elmoe/MODEL_CARD.md": "model-card.md",
    "training/README.md": "training.md",
}
"""Texts outside `docs/` that are pages, by their place in the site."""

LINK = re.compile(r"(!?\[[^\[\]]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^\s*(```+|~~~+)")
ELSEWHERE = re.compile(r"^(#|[a-z]+:)")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".cu": "cuda", ".h": "cpp", ".cpp": "cpp"}


def site_path(path: str) -> str:
    """Where a file of the repository lies in the site: `docs/cpu.md` -> `cpu.md`, `README.md` -> `index.md`."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def repository_path(path: str) -> str:
    """Inverse of `site_path` for texts: `cpu.md` -> `docs/cpu.md`."""
    return {place: source for source, place in NAMED.items()}.get(path, f"docs/{path}")


def links(text: str) -> Iterator[tuple[int, str]]:
    """(line from 1, target) of every link and image outside code blocks."""
    line = 1
    for part, prose in _parts(text):
        for found in LINK.finditer(part) if prose else ():
            yield line + part.count("\n", 0, found.start()), found[2]
        line += part.count("\n")


def resolve(source: str, target: str) -> tuple[str, str] | None:
    """(path in the repository, anchor or "") of a link in the file `source`; None for one to elsewhere."""
    if ELSEWHERE.match(target):
        return None
    path, _, anchor = target.partition("#")
    return os.path.normpath(PurePosixPath(source).parent / path), anchor


def rewritten(text: str, source: str) -> str:
    """A text of the repository with its links as the site needs them."""
    here = PurePosixPath(site_path(source)).parent

    def moved(found: re.Match[str]) -> str:
        goal = resolve(source, found[2])
        if goal is None:
            return found[0]
        path, anchor = goal
        return found[1] + os.path.relpath(site_path(path), here) + (f"#{anchor}" if anchor else "") + found[3]

    return "".join(LINK.sub(moved, part) if prose else part for part, prose in _parts(text))


def linked_sources(root: Path = ROOT) -> set[str]:
    """Files and folders without a place of their own that some page links to, as paths in the repository."""
    found: set[str] = set()
    for path in texts(root):
        for _, target in links((root / path).read_text(encoding="utf-8")):
            goal = resolve(path, target)
            if goal is not None and site_path(goal[0]).startswith("source/"):
                found.add(goal[0])
    return {path for path in found if (root / path).exists()}


def texts(root: Path = ROOT) -> list[str]:
    """All texts that are pages, as paths in the repository."""
    return sorted(NAMED) + sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))


def source_page(path: str, root: Path = ROOT) -> str:
    """A page that shows a file, or lists a folder."""
    if (root / path).is_dir():
        names = sorted(file.name for file in (root / path).iterdir() if not file.name.startswith(("__", ".")))
        return f"# `{path}/`\n\n" + "".join(f"* `{name}`\n" for name in names)
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    body = (root / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n`````{language}\n{body.rstrip()}\n`````\n"


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each is outside code blocks."""
    fence, part = "", ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and not fence:
            yield part, True
            fence, part = mark[1], line
        elif mark and mark[1].startswith(fence):
            yield part + line, False
            fence, part = "", ""
        else:
            part += line
    yield part, not fence
