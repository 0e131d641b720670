"""The commands and the Python of the README, the quick start, the how-tos and docs/simulator.md, run as they stand
there; and every `elmoe` command of any page, parsed."""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from elmoe.cli import main as cli
from elmoe.cli.app import app

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\.venv/bin/)?elmoe (.+?)(?:\s+#.*)?$", re.MULTILINE)
ONLY_PARSED = ("MODEL", "CELLS", "http://", "keys.txt", "rtl emit")
"""In commands that need what a reader has, or a minute."""


class Shown(NamedTuple):
    """A command or a piece of code, and the page that shows it."""

    page: str
    text: str


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for found, body in FENCED.findall(text) if found == language]


def pages() -> list[str]:
    """All that is read by users, as paths in the repository."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def shown(of: list[str]) -> list[Shown]:
    """The commands of pages, each once."""
    found = [Shown(page, command) for page in of for block in blocks(page, "") for command in COMMAND.findall(block)]
    return list({each.text: each for each in found}.values())


RUN_PAGES = [
    page for page in pages() if page in ("README.md", "docs/quickstart.md", "docs/simulator.md") or "how-to/" in page
]
RUN = [each for each in shown(RUN_PAGES) if not any(word in each.text for word in ONLY_PARSED)]
CODE = [Shown(page, code) for page in [*RUN_PAGES, "docs/reference/sim.md"] for code in blocks(page, "python")]


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny):
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    Path("my.elmoe").symlink_to(tiny.path)
    Path("examples").symlink_to(ROOT / "examples")
    Path("prompts.jsonl").write_text('{"prompt": "Hi! How are you today?"}\n', encoding="utf-8")
    Path("path/to").mkdir(parents=True)
    Path("path/to/config.json").symlink_to(ROOT / "src/elmoe/sim/specs/models/glm-4.7-flash.json")
    header, *rows = (ROOT / "tests" / "sim" / "dram_reference.csv").read_text(encoding="utf-8").splitlines()
    Path("cases.csv").write_text("\n".join([header, *rows[-2:]]), encoding="utf-8")
    return tmp_path


def prepare(each: Shown) -> None:
    """What a page says to make before this."""
    if "run.parquet" in each.text.replace("-o run.parquet", ""):
        assert cli._exit_code(shlex.split("trace tiny -p Hello -o run.parquet --max-tokens 8 --mode sd")) == 0
    if machines := blocks(each.page, "toml"):
        Path("my_machine.toml").write_text(machines[0], encoding="utf-8")


@pytest.mark.parametrize("each", RUN, ids=lambda each: each.text)
def test_commands(each, workplace, capsys):
    command = each.text.replace("PATH/TO/HF_FOLDER -o my.elmoe", f"{ROOT}/tests/golden/random_moe -o made.elmoe")
    prepare(each)
    if command.startswith("serve "):
        assert_serves(shlex.split(command))
        return
    assert cli._exit_code(shlex.split(command)) == 0, capsys.readouterr().err


def assert_serves(arguments):
    """A command that goes on until it is told to end."""
    script = "from elmoe.cli.main import main; main()"
    command = [sys.executable, "-c", script, *arguments, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert answer.status == 200
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("each", CODE, ids=lambda each: each.page)
def test_python(each, workplace, capsys):
    if "openai" in each.text:
        pytest.skip("needs a server; tests/server drives one with this client")
    prepare(each)
    exec(compile(each.text, each.page, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("each", shown(pages()), ids=lambda each: f"{each.page}: {each.text}")
def test_every_command_of_any_page_parses(each):
    run_nothing().main(args=shlex.split(each.text), prog_name="elmoe", standalone_mode=False)


def test_a_command_that_does_not_parse_is_found():
    for wrong in ("simulate --modle tiny", "runn tiny", "run", "run tiny --width wide"):
        with pytest.raises(Exception, match=r"(?i)no such|missing|valid integer"):
            run_nothing().main(args=shlex.split(wrong), prog_name="elmoe", standalone_mode=False)


def run_nothing():
    """The command line with verbs that parse their options and do nothing."""

    def without_work(command):
        for verb in getattr(command, "commands", {}).values():
            without_work(verb)
        if not hasattr(command, "commands"):
            command.callback = lambda **_: None
        return command

    return without_work(typer.main.get_command(app))


def test_there_is_something_to_run():
    assert {page for page, _ in RUN} == set(RUN_PAGES)
    assert len(shown(["README.md"])) >= 5
    assert {page for page, _ in CODE} >= {"README.md", "docs/quickstart.md", "docs/how-to/trace.md"}
