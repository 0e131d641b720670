"""A small random model with tiny's tokenizer behind a real server on a loopback port, driven by the openai client."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import tokenizers
import uvicorn
from safetensors.numpy import save_file

from backend.family_models import FAMILY_MODELS, random_tensors
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.resolve import resolve
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.server.app import make_app
from elmoe.server.options import ServerOptions
from elmoe.server.serve import DrainingServer, listen

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>"
    'Call with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ lead }}{% endif %}"
)
THINK_TEMPLATE = TOOL_TEMPLATE.replace("{{ lead }}", "{% if thinking %}<think>\n{% endif %}")
HARMONY_TEMPLATE = (
    "{% for tool in tools or [] %}<|start|>developer<|message|>{{ tool | tojson }}<|end|>{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{{ '<|channel|>' if False }}{% endif %}"
)
HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
KINDS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "tools": (TOOL_TEMPLATE, (), False),
    "tool_tokens": (TOOL_TEMPLATE, ("<tool_call>", "</tool_call>"), False),
    "think": (THINK_TEMPLATE, ("<think>", "</think>", "<tool_call>", "</tool_call>"), False),
    "spelled_think": (THINK_TEMPLATE, (), False),
    "harmony": (HARMONY_TEMPLATE, HARMONY_MARKS, True),
}
"""Chat template, added tokens, whether they are special."""


def make_model(folder: Path, kind: str) -> Path:
    """A random Qwen3-MoE in `folder` that writes as one of `KINDS`."""
    source = folder / "source"
    source.mkdir()
    template, added, special = KINDS[kind]
    core = tokenizers.Tokenizer.from_file(str(resolve("tiny") / "tokenizer.json"))
    core.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False) for text in added])
    core.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text(template)
    stop = core.token_to_id("<|im_end|>")
    config = FAMILY_MODELS["qwen3_moe"] | {"vocab_size": core.get_vocab_size() + 5, "eos_token_id": stop}
    (source / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config, seed=1), source / "model.safetensors")
    convert(source, folder / "random.elmoe")
    return folder / "random.elmoe"


class Served:
    """A running server."""

    def __init__(self, url: str, service: Any, server: Any) -> None:
        self.url, self.service, self.server = url, service, server
        self.engine = service.engine

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or text, headers) of a GET, or of a POST of a document or of bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        request = urllib.request.Request(self.url + path, data, named)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, content, got = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            with error:
                status, content, got = error.code, error.read(), error.headers
        try:
            return status, json.loads(content), dict(got)
        except ValueError:
            return status, content.decode(), dict(got)

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)


@contextmanager
def serving(engine: Engine, **options: Any) -> Iterator[Served]:
    """A server in a thread of this process."""
    settings = ServerOptions(**{"port": 0, "model_name": "random", **options})
    listening = listen(settings)
    app = make_app(engine, settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
    server = DrainingServer(config, app.state.service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    server.capture_signals = _no_signals  # type: ignore[method-assign]  # a thread cannot have any
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service, server)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


def open_engine(folder: Path, **options: Any) -> Engine:
    return Engine.open(folder, EngineOptions(**{"prefix_cache_tokens": 4096, **options}))
