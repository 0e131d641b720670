"""`elmoe serve` and `elmoe chat` as they are typed. What the server does is tested in tests/server."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_calls import call, document

from elmoe.cli.serve import model_name

RANDOM_MODEL = Path(__file__).parents[1] / "golden" / "random_moe"
HELLO = "Hello there, how are you on this fine day, and where will you go from here?"
SHORT = ("--max-tokens", 12, "--temperature", 0)


@contextmanager
def server(*options):
    """The URL of a server that a process of its own announces."""
    command = [
        sys.executable,
        "-c",
        "from elmoe.cli.main import main; main()",
        "serve",
        "tiny",
        "--port",
        "0",
        "--json",
    ]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )  # fmt: skip
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        process.stdout.close()
    assert code == 0


def test_a_chat_with_a_local_model_remembers_its_turns(capsys):
    turns = ("-p", HELLO, "-p", "And why is that so?", "--mode", "sd")
    made = document(capsys, "chat", "tiny", *turns, *SHORT)
    assert [message["role"] for message in made["messages"]] == ["user", "assistant"] * 2
    assert made["answers"][1]["cached_tokens"] > 16, "the first turn is not computed twice"
    code, out, err = call(capsys, "chat", "tiny", *turns, *SHORT)
    assert (code, out.split("\n")[0]) == (0, made["messages"][1]["content"].split("\n")[0])
    assert "of them drafted" in err
    assert document(capsys, "chat", "tiny", *turns[:2], *SHORT, "--mode", "ar")["messages"] == made["messages"][:2]


def test_turns_come_from_standard_input_and_a_chat_starts_over(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\n/new\nHello\n/exit\nnever\n"))
    made = document(capsys, "chat", "tiny", *SHORT, "--system", "Be kind.")
    assert [message["role"] for message in made["messages"]] == ["system", "user", "assistant"]
    assert len(made["answers"]) == 2


def test_a_chat_with_a_server_is_the_chat_with_the_model(capsys, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    turns = ("-p", HELLO, "-p", "And why is that so?", *SHORT)
    local = document(capsys, "chat", "tiny", *turns)
    with server("--api-key-file", str(keys), "--mode", "sd") as announced:
        assert announced["model"] == "tiny"
        code, _, err = call(capsys, "chat", announced["url"], *turns)
        assert (code, err) == (2, f"error: {announced['url']}: give a valid API key as 'Authorization: Bearer KEY'\n")
        monkeypatch.setenv("ELMOE_API_KEY", "sesame")
        remote = document(capsys, "chat", announced["url"] + "/v1", *turns)
        assert remote["messages"] == local["messages"]
        assert remote["answers"][1]["cached_tokens"] > 16
        code, _, err = call(capsys, "chat", announced["url"], "-p", "Hi", "--max-tokens", 100_000)
        assert code == 2
        assert "max_tokens must be at most 4096, not 100000" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("chat", "http://127.0.0.1:9", "-p", "Hi"), "http://127.0.0.1:9: no elmoe server answers there"),
        (("chat", "tiny", "-p", " "), "the prompt is empty; give at least one word"),
        (("chat", RANDOM_MODEL, "-p", "Hi"), "this model has no chat template; use elmoe run --raw"),
        (
            ("serve", "tiny", "--log-level", "loud"),
            "--log-level must be one of debug, info, warning, error, not 'loud'",
        ),
        (("serve", "tiny", "--port", 99999), "port must be 0 to 65535, not 99999"),
        (("serve", "tiny", "--max-batch", 0), "max_batch must be 1 to 256, not 0"),
        (("serve", "tiny", "--max-body-bytes", "many"), "cannot read 'many' as a number of bytes"),
        (("serve", "tiny", "--api-key-file", "no/such"), "no/such: cannot be read: No such file or directory"),
        (("serve", "tiny", "--host", "no.such.host.invalid"), "--host no.such.host.invalid: "),
        (("serve", "no-such-model"), "no-such-model"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, text):
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path))
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert text in err


def test_a_port_in_use_is_named(capsys):
    with server() as announced:
        port = announced["url"].rsplit(":", 1)[1]
        code, _, err = call(capsys, "serve", "tiny", "--port", port)
        assert (code, err) == (2, f"error: 127.0.0.1:{port} is in use; choose another --port\n")


@pytest.mark.parametrize(
    ("given", "name"),
    [("tiny", "tiny"), ("a/b/my.elmoe", "my"), ("model-Q8_0.gguf", "model-Q8_0"), (os.sep, os.sep)],
)
def test_models_are_called_by_their_file(given, name):
    assert model_name(given) == name
