"""The commands of the README and of docs/simulator.md, and the README's Python, run as they stand there."""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from elmoe.cli import main as cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\.venv/bin/elmoe (.+?)(?:\s+#.*)?$", README, re.MULTILINE)
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

SIMULATOR = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
SIMULATIONS = re.findall(r"^elmoe (.+?)(?:\s+#.*)?$", SIMULATOR, re.MULTILINE)
OWN_MACHINE = re.findall(r"```toml\n(.*?)```", SIMULATOR, re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    Path("my.elmoe").symlink_to(tiny.path)
    Path("examples").symlink_to(ROOT / "examples")
    Path("prompts.jsonl").write_text('{"prompt": "Hi! How are you today?"}\n', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, workplace, capsys):
    command = command.replace("PATH/TO/HF_FOLDER -o my.elmoe", f"{ROOT}/tests/golden/random_moe -o made.elmoe")
    if "--trace run.parquet" in command:  # made by a command above it in the README
        assert cli._exit_code(shlex.split("trace tiny -p Hello -o run.parquet --max-tokens 8 --mode sd")) == 0
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


@pytest.mark.parametrize("code", CODE)
def test_python(code, workplace, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_is_something_to_run():
    assert len(COMMANDS) >= 5
    assert CODE


@pytest.mark.parametrize("command", SIMULATIONS)
def test_simulations(command, workplace, capsys):
    Path("my_machine.toml").write_text(OWN_MACHINE[0], encoding="utf-8")
    Path("path/to").mkdir(parents=True)
    Path("path/to/config.json").symlink_to(ROOT / "src/elmoe/sim/specs/models/glm-4.7-flash.json")
    header, *rows = (ROOT / "tests" / "sim" / "dram_reference.csv").read_text(encoding="utf-8").splitlines()
    Path("cases.csv").write_text("\n".join([header, *rows[-2:]]), encoding="utf-8")
    if "--trace run.parquet" in command:
        assert cli._exit_code(shlex.split("trace tiny -p Hello -o run.parquet --max-tokens 8 --mode sd")) == 0
    assert cli._exit_code(shlex.split(command)) == 0, capsys.readouterr().err
