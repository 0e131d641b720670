"""What an operator relies on: queues, limits, keys, cancellation, time limits, draining, numbers."""

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
from random_server import open_engine, serving

from elmoe.errors import ConfigError, StorageError
from elmoe.server.errors import ApiError
from elmoe.server.logs import JsonLines
from elmoe.server.options import ApiKeys, ServerOptions

CHAT = {"messages": [{"role": "user", "content": "Hello, how do you do on this fine day in the spring?"}]}
LONG = CHAT | {"max_tokens": 900, "ignore_eos": True, "temperature": 0}


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def raw_stream(served, body):
    """A socket on which a stream has begun."""
    data = json.dumps(body | {"stream": True}).encode()
    connection = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])), timeout=20)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    assert b"200 OK" in connection.recv(4096)
    return connection


@pytest.fixture(scope="module")
def folder(model_folder):
    return model_folder("tools")


@pytest.fixture
def slow(folder, monkeypatch):
    """``slow(**options)``: a server whose steps take 10 ms and more."""

    def make(**options):
        engine = open_engine(folder, max_batch=2)
        step = engine.step

        def slowly():
            time.sleep(0.01)
            return step()

        monkeypatch.setattr(engine, "step", slowly)
        return serving(engine, **options)

    return make


def test_beyond_the_queue_comes_429_and_then_room_again(slow):
    with slow(max_queue=1) as served:
        streams = [raw_stream(served, LONG) for _ in range(2)]
        third = threading.Thread(target=served.ask, args=("/v1/chat/completions", CHAT | {"max_tokens": 1}))
        third.start()
        until(lambda: (served.service.loop.live, served.engine.waiting) == (3, 1))
        status, document, headers = served.ask("/v1/chat/completions", CHAT)
        assert (status, document["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(headers["retry-after"]) <= 60
        for stream in streams:
            stream.close()
        third.join(10)
        assert served.ask("/v1/chat/completions", CHAT | {"max_tokens": 1})[0] == 200
        status, document, _ = served.ask("/v1/chat/completions", CHAT | {"n": 4})
        assert (status, document["error"]["message"]) == (400, "4 texts were asked for; this server holds 3 at most")


def test_a_client_that_goes_is_noticed(slow):
    """How soon the engine heeds it is tested in test_loop.py."""
    with slow() as served:
        for _ in range(2):
            stream = raw_stream(served, LONG)
            until(lambda: len(served.engine.running) == 1)
            stream.close()
            until(lambda: not served.engine.running)
        until(lambda: served.service.loop.live == 0)
        assert served.engine.steps < 2 * 900 / 5, "neither was finished"


def test_a_waiting_client_that_goes_is_forgotten(slow):
    with slow() as served:
        running = [raw_stream(served, LONG) for _ in range(2)]
        data = json.dumps(LONG).encode()
        waiting = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
        waiting.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        waiting.sendall(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: served.engine.waiting == 1)
        waiting.close()
        until(lambda: served.engine.waiting == 0)
        for stream in running:
            stream.close()


def test_a_request_has_a_time_limit(slow):
    with slow(timeout_seconds=0.3) as served:
        status, document, _ = served.ask("/v1/chat/completions", LONG)
        assert (status, document["error"]["code"]) == (504, "timeout")
        with pytest.raises(openai.APIError, match=r"was not done after 0.3 s and was ended"):
            list(served.client().chat.completions.create(model="random", stream=True, **{**CHAT, "max_tokens": 900}))
        until(lambda: served.service.loop.live == 0)


def test_a_reader_that_takes_nothing_is_left(slow):
    with slow(timeout_seconds=1.0) as served:
        stream = raw_stream(served, LONG | {"max_tokens": 400})
        until(lambda: served.service.loop.live == 0)
        stream.close()


def test_a_failing_engine_fails_its_requests_and_goes_on(folder, monkeypatch, caplog):
    engine = open_engine(folder)
    with serving(engine) as served:

        def broken(*_):
            raise OSError("disk")

        with monkeypatch.context() as patch:
            patch.setattr(engine.backend, "forward", broken)
            status, document, _ = served.ask("/v1/chat/completions", CHAT)
        assert (status, document["error"]["type"]) == (500, "server_error")
        assert "disk" not in document["error"]["message"]
        assert "OSError: disk" in caplog.text
        assert served.ask("/v1/chat/completions", CHAT | {"max_tokens": 2})[0] == 200


def test_draining_finishes_what_runs_and_takes_no_more(slow):
    with slow() as served:
        got = []
        body = CHAT | {"max_tokens": 60, "ignore_eos": True, "temperature": 0, "speculation": {"mode": "ar"}}
        asking = threading.Thread(target=lambda: got.append(served.ask("/v1/chat/completions", body)))
        asking.start()
        until(lambda: len(served.engine.running) == 1)
        served.server.should_exit = True
        until(lambda: served.service.draining)
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])), timeout=2).recv(1)
        asking.join(20)
        assert got[0][0] == 200
        assert got[0][1]["usage"]["completion_tokens"] == 60


def test_sigterm_under_load(folder):
    """The command itself: it drains, says so, and ends with 0."""
    code = "from elmoe.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(folder), "--port", "0", "--mode", "sd"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = next(json.loads(line)["url"] for line in process.stderr if '"listening"' in line)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        streams = [
            client.chat.completions.create(
                model="random", stream=True, **CHAT, max_tokens=800, extra_body={"ignore_eos": True}
            )
            for _ in range(4)
        ]
        firsts = [next(stream) for stream in streams]
        process.send_signal(signal.SIGTERM)
        reasons = [list(stream)[-1].choices[0].finish_reason for stream in streams]
        assert reasons == ["length"] * 4
        assert len(firsts) == 4
        assert process.wait(20) == 0
        assert '"draining"' in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_keys(folder, tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text("# ours\n\nalice sesame-1\nsesame-2\n")
    caplog.set_level(logging.INFO)
    with serving(open_engine(folder), keys=ApiKeys.read(file)) as served:
        assert served.ask("/v1/models")[0] == 401
        status, document, headers = served.ask("/v1/models", authorization="Bearer wrong-key")
        assert (status, document["error"]["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"] == "Bearer"
        assert served.ask("/metrics")[0] == 401
        assert served.ask("/health")[0] == served.ask("/")[0] == 200
        assert served.ask("/v1/models", authorization="Bearer sesame-1")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            served.client("sesame-3").models.list()
        assert served.client("sesame-2").chat.completions.create(model="random", **CHAT, max_tokens=2)
    assert {record.client for record in caplog.records if record.name.endswith("access")} >= {"alice", "key-4"}
    written = " ".join(JsonLines().format(record) for record in caplog.records)
    assert "sesame" not in written
    assert "wrong-key" not in written
    assert "fine day" not in written, "prompts are not logged"


@pytest.mark.parametrize(
    ("content", "text"),
    [("# none\n", "holds no key"), ("a b c\n", "line 1: write KEY or NAME KEY"), (b"\xff\xfe", "is not UTF-8 text")],
)
def test_key_files_that_are_none(tmp_path, content, text):
    file = tmp_path / "keys"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=text):
        ApiKeys.read(file)
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        ApiKeys.read(tmp_path / "nothing")


@pytest.fixture(scope="module")
def small(folder):
    with serving(open_engine(folder), max_body_bytes=2000) as served:
        yield served


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "the body is not JSON"),
        (b'{"messages": [' + b"[" * 1500, 400, ""),
        (b"\xff\xfe\x00", 400, ""),
        (b"[]", 400, "Input should be a valid dictionary|valid dictionary|object"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "temperature"),
        (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1e400}', 400, "max_tokens"),
        (b" " * 3000, 413, "the body is larger than the 2,000 bytes that this server reads"),
    ],
)
def test_malformed_bodies_are_refused(small, body, status, text):
    got, document, _ = small.ask("/v1/chat/completions", body)
    assert got == status
    assert re.search(text, document["error"]["message"])
    assert small.ask("/v1/chat/completions", CHAT | {"max_tokens": 1})[0] == 200


def test_a_body_that_says_nothing_of_its_length_is_measured(small):
    connection = socket.create_connection(("127.0.0.1", int(small.url.rsplit(":", 1)[1])), timeout=10)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    for _ in range(2):
        connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
    assert b" 413 " in connection.recv(4096)
    connection.close()


def test_a_page_from_elsewhere_cannot_use_a_local_server(small):
    form = {"content-type": "text/plain"}  # what a form may send without being asked about it
    assert small.ask("/v1/chat/completions", CHAT, **form)[0] == 400
    assert small.ask("/v1/models", host="evil.example")[0] == 421
    assert small.ask("/v1/models", host="localhost:1")[0] == 200
    assert small.ask("/page/..%2fapp.py")[0] == 404
    assert small.ask("/page/app.py")[0] == 404
    status, _, headers = small.ask("/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]


def test_the_reference_page_names_all_endpoints_and_loads_nothing(small):
    status, page, headers = small.ask("/docs")
    assert status == 200
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/health", "/metrics"):
        assert path in page
    assert "SpeculationFields" in page
    assert not re.search(r"https?://|<script", page)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert small.ask("/openapi.json")[1]["info"]["title"] == "elmoe"


def test_tokenize_and_back(small):
    _, tokens, _ = small.ask("/tokenize", {"prompt": "Hello you"})
    assert tokens["count"] == len(tokens["tokens"])
    assert small.ask("/detokenize", {"tokens": tokens["tokens"]})[1] == {"prompt": "Hello you"}
    _, chat, _ = small.ask("/tokenize", {"messages": CHAT["messages"]})
    assert chat["count"] > tokens["count"]
    assert small.ask("/tokenize", {"prompt": "a", "model": "other"})[0] == 404
    assert small.ask("/tokenize", {})[0] == small.ask("/detokenize", {"tokens": [1 << 30]})[0] == 400


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids(tmp_path, monkeypatch):
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path))
    with serving(open_engine(Path(__file__).parents[1] / "golden" / "random_moe")) as served:
        body = {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "return_token_ids": True}
        status, document, _ = served.ask("/v1/completions", body | {"speculation": {"mode": "ar"}, "logprobs": 1})
        assert status == 200
        assert len(document["choices"][0]["token_ids"]) == 4
        again = served.ask("/v1/completions", body | {"speculation": {"mode": "sd"}})[1]
        assert again["choices"][0]["token_ids"] == document["choices"][0]["token_ids"]
        for path, refused in (
            ("/v1/completions", {"prompt": "text"}),
            ("/v1/completions", {"prompt": [1], "stop": "x"}),
            ("/v1/completions", {"prompt": [1], "response_format": {"type": "json_object"}}),
            ("/v1/chat/completions", CHAT),
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [1]}),
        ):
            status, document, _ = served.ask(path, refused)
            assert status == 400
            assert "this model has no tokenizer.json" in document["error"]["message"]


def test_metrics_and_the_live_view(folder):
    with serving(open_engine(folder)) as served:
        body = CHAT | {"max_tokens": 20, "temperature": 0, "ignore_eos": True, "speculation": {"mode": "sd"}}
        for _ in range(2):
            served.ask("/v1/chat/completions", body)
        _, text, _ = served.ask("/metrics")
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(values['elmoe_requests_total{outcome="length"}']) == 2
        drafted, target = (float(values[f'elmoe_generated_tokens_total{{origin="{o}"}}']) for o in ("draft", "target"))
        assert drafted + target == 40
        assert drafted > 0
        cached, computed = (float(values[f'elmoe_prompt_tokens_total{{source="{s}"}}']) for s in ("cached", "computed"))
        assert cached > 0
        assert computed > cached
        for name in (
            "time_to_first_token_seconds",
            "time_per_output_token_seconds",
            "queue_seconds",
            "acceptance_rate",
        ):
            assert float(values[f"elmoe_{name}_count"]) == 2
        verifies = float(values['elmoe_passes_total{kind="verify"}'])
        assert float(values["elmoe_accepted_length_count"]) >= verifies > 0
        assert float(values["elmoe_batch_size_count"]) >= verifies
        assert float(values['elmoe_experts_read_count{kind="verify"}']) == verifies
        assert 2 <= float(values['elmoe_experts_read_sum{kind="verify"}']) / verifies <= 8
        for tier in ("fast", "slow", "kv"):
            assert float(values[f'elmoe_read_bytes_total{{kind="verify",tier="{tier}"}}']) > 0
        assert 0 < float(values["elmoe_pool_hits_total"]) <= float(values["elmoe_pool_decisions_total"])
        assert float(values["elmoe_kept_kv_cells"]) > 0
        assert float(values["elmoe_running_sequences"]) == 0
        _, live, _ = served.ask("/elmoe/live")
        assert len(live["pool"]["heat"]) == len(live["pool"]["resident"]) == 2
        assert live["running"] == 0


def test_the_dashboard_asks_for_metrics_that_there_are(small):
    small.ask("/v1/chat/completions", CHAT | {"max_tokens": 3, "speculation": {"mode": "sd"}})
    _, text, _ = small.ask("/metrics")
    there = set(re.findall(r"^(elmoe_\w+)", text, re.MULTILINE))
    dashboard = json.loads((Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text())
    asked = {name for panel in dashboard["panels"] for target in panel.get("targets", ())
             for name in re.findall(r"elmoe_\w+", target["expr"])}  # fmt: skip
    assert len(asked) > 12
    assert asked <= there


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"port": 70000}, "port must be 0 to 65535"),
        ({"max_queue": -1}, "max_queue must be 0 or more"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
    ],
)
def test_impossible_options_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        ServerOptions(**options)


def test_errors_say_what_kind_they_are():
    assert ApiError(429, "x", "queue_full").body()["error"]["type"] == "rate_limit_error"
    assert ApiError(503, "x", "y").body()["error"]["type"] == "server_error"
