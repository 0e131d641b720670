"""The documentation site: every page is in its menu, every link leads somewhere, in the repository and in the site,
and what is generated says all there is to say. `make docs` builds it, with warnings as errors."""

import json
import re

import griffe
import pytest
import typer
import yaml
from markdown.extensions.toc import slugify

import elmoe
from cli_reference import cli_reference, whole_sentences
from draw import FOLDER, PICTURES
from elmoe.cli.app import app
from hooks import IMPORTED, LOADED, search_from_disk, stylesheet
from repository import (
    ROOT,
    linked_sources,
    links,
    repository_path,
    resolve,
    rewritten,
    site_path,
    source_page,
    texts,
)
from svg import Picture

MENU = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
MADE = {"reference/cli.md"}
"""Pages that are no files."""


def in_menu(part) -> list[str]:
    """Pages of a part of the menu."""
    if isinstance(part, str):
        return [part]
    return [page for each in (part.values() if isinstance(part, dict) else part) for page in in_menu(each)]


def anchors(path: str) -> set[str]:
    """Of a text's headings."""
    body = re.sub(r"^```.*?^```$", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in re.findall(r"^#+ (.+)$", body, re.MULTILINE)}


# --- pages and links ---


def test_every_page_is_in_the_menu_once():
    pages = in_menu(MENU)
    assert len(pages) == len(set(pages))
    assert set(pages) == {site_path(path) for path in texts()} | MADE


@pytest.mark.parametrize("path", texts())
def test_links_lead_somewhere_in_the_repository_and_in_the_site(path):
    for line, target in links((ROOT / path).read_text(encoding="utf-8")):
        goal = resolve(path, target)
        where = f"{path}:{line}: {target}"
        if target.startswith("#"):
            assert target[1:] in anchors(path), where
        if goal is None:
            continue
        found, anchor = goal
        assert (ROOT / found).exists() or site_path(found) in MADE, where
        assert not anchor or anchor in anchors(found), where


def test_where_files_lie_in_the_site():
    assert site_path("README.md") == "index.md"
    assert site_path("docs/how-to/serve.md") == "how-to/serve.md"
    assert site_path("src/elmoe/rtl/pe.py") == "source/src/elmoe/rtl/pe.py.md"
    assert all(repository_path(site_path(path)) == path for path in texts())


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("README.md", "see [a](docs/cpu.md#kernels), [b](LICENSE)", "see [a](cpu.md#kernels), [b](source/LICENSE.md)"),
        ("docs/how-to/serve.md", "[a](../server.md)", "[a](../server.md)"),
        ("docs/how-to/serve.md", "[a](../../README.md#use-it)", "[a](../index.md#use-it)"),
        (
            "docs/log.md",
            "![p](img/x.png) [q](https://example.org) [r](#top)",
            "![p](img/x.png) [q](https://example.org) [r](#top)",
        ),
        (
            "docs/log.md",
            "```\n[a](../README.md)\n```\n[a](../README.md)\n",
            "```\n[a](../README.md)\n```\n[a](index.md)\n",
        ),
        ("training/README.md", "[a](train.py)", "[a](source/training/train.py.md)"),
        ("docs/log.md", "[two\nlines](../README.md)", "[two\nlines](index.md)"),
    ],
)
def test_links_become_links_of_the_site(source, text, expected):
    assert rewritten(text, source) == expected


def test_linked_sources_become_pages():
    assert "examples/elmoe_3d_rtl.toml" in linked_sources()
    assert 'base = "elmoe-3d"' in source_page("examples/elmoe_3d_rtl.toml")
    assert "* `train.py`" in source_page("training")


def test_pages_load_nothing_from_elsewhere():
    assert LOADED.findall('<script src="https://example.org/x.js"></script>') == ["https://example.org/x.js"]
    assert LOADED.findall('<a href="https://example.org">x</a><script src="../x.js"></script>') == []
    assert LOADED.findall('<link rel="canonical" href="http://127.0.0.1/x.html">') == []
    assert LOADED.findall('<link rel="stylesheet" href="//example.org/x.css">') == ["//example.org/x.css"]
    assert IMPORTED.findall("@import url(//fonts.example.org/a)") == ["//fonts.example.org/a"]


def test_search_and_colours_are_made_of_what_is_there():
    script = search_from_disk()
    text = json.loads(re.search(r"const text = (.*);\n", script)[1].replace("<\\/", "</"))
    assert len(text) > 1000
    assert "--fast:" in stylesheet()


# --- the reference ---


def test_the_command_line_is_described_whole():
    text = cli_reference()
    sections = dict(re.findall(r"^##+ `elmoe ([^`]+)`\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))

    def check(command, name):
        for verb, each in getattr(command, "commands", {}).items():
            check(each, f"{name} {verb}".strip())
        for option in command.params if name else ():
            for spelling in option.opts:
                assert spelling in sections[name], (name, spelling)

    check(typer.main.get_command(app), "")
    assert "..." not in text.split("**Commands**")[1].split("##")[0]


def test_sentences_that_typer_cuts_are_whole_again():
    text = "* `run`: Complete...\n\n## `elmoe run`\n\nComplete prompts, whole.\n\n**Usage**\n"
    assert whole_sentences(text).splitlines()[0] == "* [`run`](#elmoe-run): Complete prompts, whole."


@pytest.fixture(scope="module")
def package():
    """elmoe as its sources have it, nothing imported."""
    return griffe.load("elmoe", search_paths=[str(ROOT / "src")])


def test_public_names_are_in_the_reference_and_documented(package):
    named = {
        name for page in REFERENCE for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)
    }
    for name in elmoe.__all__:
        if name.startswith("__"):
            continue
        home = elmoe._HOMES[name]
        assert f"elmoe.{name}" in named or home in named, name
        for member in package[f"{home.removeprefix('elmoe.')}.{name}"].members.values():
            assert member.name.startswith("_") or member.has_docstring, member.path


def docstrings(thing):
    """(path, text) of a module's or class's docstring and of all public ones in it."""
    if thing.docstring:
        yield thing.path, thing.docstring.value
    for member in thing.members.values():
        if not member.is_alias and not member.name.startswith("_"):
            yield from docstrings(member)


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_docstrings_are_markdown(page, package):
    """No powers that become bold, no marks of reStructuredText."""
    for name in re.findall(r"^::: elmoe\.([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        thing = package[name]
        for path, text in docstrings(thing.final_target if thing.is_alias else thing):
            prose = re.sub(r"``.*?``|`[^`]*`", "", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE), flags=re.DOTALL)
            wrong = re.findall(r"\w\*\*|::$|^=+ |:\w+:`|\w\*\w", prose, re.MULTILINE)
            assert not wrong, (path, wrong)


# --- pictures ---


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_as_drawn(name):
    """Their numbers are the simulator's and the engine's: draw them anew where this fails (docs/site/draw.py)."""
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == PICTURES[name]().svg()


def test_a_text_that_leaves_its_picture_is_an_error():
    with pytest.raises(ValueError, match="too long"):
        Picture(100, 50, "small").text(10, 20, "a text of many words")
