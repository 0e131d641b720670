"""The reference of the command line, by typer's own generator: verbs, options and defaults as `--help` has them."""

from __future__ import annotations

import re
import subprocess
import sys

ENTRY = re.compile(r"^\* `([\w-]+)`: .*$", re.MULTILINE)
SECTION = re.compile(r"^(##+) `(elmoe [^`]+)`\n\n(.*?)\n\n", re.MULTILINE | re.DOTALL)


def cli_reference() -> str:
    """Markdown. Raises RuntimeError with what typer says if it fails."""
    command = [sys.executable, "-m", "typer", "elmoe.cli.app", "utils", "docs", "--name", "elmoe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"typer cannot describe the command line:\n{done.stderr}")
    return whole_sentences(done.stdout).replace("# `elmoe`\n", "# The command line\n", 1)


def whole_sentences(text: str) -> str:
    """Lists of verbs with what each does in full, where typer cuts it, and links to their sections."""
    about = {name: help_text for _, name, help_text in SECTION.findall(text)}
    prefix = "elmoe"
    lines = []
    for line in text.splitlines():
        if heading := re.match(r"^##+ `(elmoe [^`]+)`$", line):
            prefix = heading[1]
        entry = ENTRY.match(line)
        verb = entry[1] if entry else ""
        name = f"{prefix} {verb}"
        anchor = name.replace(" ", "-")
        lines.append(f"* [`{verb}`](#{anchor}): {about[name]}" if name in about else line)
    return "\n".join(lines) + "\n"
