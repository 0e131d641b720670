"""The documents that the server sends: completions, chunks of streams, usage, log-probabilities.

Knows nothing about HTTP or the engine's insides.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from elmoe.checkpoint.reasoning import Parts
from elmoe.engine.request import Output
from elmoe.engine.sampler import TokenLogprobs
from elmoe.server.loop import Delta, Job
from elmoe.server.structured import CallFormat
from elmoe.server.tools import CallDelta, HarmonyCalls, HermesCalls, new_call_id
from elmoe.trace.schema import Acceptance

TokenBytes = Callable[[int], bytes]


class ChatChoice:
    """One answer of a chat, as it comes in."""

    def __init__(
        self, index: int, calls: CallFormat, token_bytes: TokenBytes | None, stop_tokens: frozenset[int]
    ) -> None:
        """calls: the format in which tool calls are looked for; token_bytes: where log-probabilities are wanted."""
        self.index, self._token_bytes, self._stops = index, token_bytes, stop_tokens
        self._hermes = HermesCalls() if calls is CallFormat.HERMES else None
        self._harmony = HarmonyCalls() if calls is CallFormat.HARMONY else None
        self._identities: dict[int, str] = {}
        self._calls: dict[int, CallDelta] = {}
        self._content, self._reasoning = "", ""
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason = "length"

    def add(self, delta: Delta) -> dict[str, Any]:
        """Take what is new; returns it as a chunk's choice."""
        content, calls = self._separated(delta.parts, delta.output is not None)
        self._content += content
        self._reasoning += delta.parts.reasoning
        fields: dict[str, Any] = {}
        if content:
            fields["content"] = content
        if delta.parts.reasoning:
            fields["reasoning_content"] = delta.parts.reasoning
        if calls:
            fields["tool_calls"] = [self._told(call) for call in calls]
        logprobs = None
        if self._token_bytes is not None:
            pairs = [(t, p) for t, p in zip(delta.tokens, delta.logprobs, strict=True) if t not in self._stops]
            entries = [chat_logprobs(token, each, self._token_bytes) for token, each in pairs]
            self._logprobs += entries
            logprobs = {"content": entries, "refusal": None}
        if delta.output is not None:
            self._finish_reason = "tool_calls" if self._calls else finish_reason(delta.output)
        reason = self._finish_reason if delta.output is not None else None
        return {"index": self.index, "delta": fields, "logprobs": logprobs, "finish_reason": reason}

    def whole(self) -> dict[str, Any]:
        """The choice of a response that is not streamed."""
        calls = [
            call.as_dict(self._identities[index]) | {"index": index} for index, call in sorted(self._calls.items())
        ]
        message: dict[str, Any] = {"role": "assistant", "content": self._content or (None if calls else "")}
        message["refusal"] = None
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if calls:
            message["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
        logprobs = {"content": self._logprobs, "refusal": None} if self._token_bytes is not None else None
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}

    def _separated(self, parts: Parts, last: bool) -> tuple[str, list[CallDelta]]:
        """(content, calls)."""
        if self._harmony is not None:
            return parts.answer, self._harmony.feed(parts.calls)
        if self._hermes is None:
            return parts.answer, []
        content, calls = self._hermes.feed(parts.answer)
        if last:
            rest, more = self._hermes.finish()
            content, calls = content + rest, calls + more
        return content, calls

    def _told(self, call: CallDelta) -> dict[str, Any]:
        identity = self._identities.setdefault(call.index, new_call_id())
        before = self._calls.get(call.index)
        self._calls[call.index] = (
            call if before is None else CallDelta(call.index, before.name, before.arguments + call.arguments)
        )
        return call.as_dict(identity)


class TextChoice:
    """One raw completion, as it comes in."""

    def __init__(self, index: int, token_bytes: TokenBytes | None) -> None:
        self.index, self._token_bytes = index, token_bytes
        self._text, self._offset, self._finish_reason = "", 0, "length"
        self._logprobs: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip

    def add(self, delta: Delta) -> dict[str, Any]:
        """Take what is new; returns it as a chunk's choice."""
        self._text += delta.parts.answer
        logprobs = None
        if self._token_bytes is not None:
            logprobs = self._lists(delta, self._token_bytes)
            for name, values in logprobs.items():
                self._logprobs[name] += values
        reason = None
        if delta.output is not None:
            reason = self._finish_reason = finish_reason(delta.output)
        return {"index": self.index, "text": delta.parts.answer, "logprobs": logprobs, "finish_reason": reason}

    def whole(self) -> dict[str, Any]:
        """The choice of a response that is not streamed."""
        logprobs = self._logprobs if self._token_bytes is not None else None
        return {"index": self.index, "text": self._text, "logprobs": logprobs, "finish_reason": self._finish_reason}

    def _lists(self, delta: Delta, token_bytes: TokenBytes) -> dict[str, list[Any]]:
        texts = [token_bytes(token).decode(errors="replace") for token in delta.tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.chosen for each in delta.logprobs],
            "top_logprobs": [
                {token_bytes(token).decode(errors="replace"): value for token, value in reversed(each.best)}
                for each in delta.logprobs
            ],
            "text_offset": offsets,
        }


def chat_logprobs(token: int, logprobs: TokenLogprobs, token_bytes: TokenBytes) -> dict[str, Any]:
    """An entry of ``logprobs.content``."""

    def entry(one: int, value: float) -> dict[str, Any]:
        spelled = token_bytes(one)
        return {"token": spelled.decode(errors="replace"), "bytes": list(spelled), "logprob": value}

    return entry(token, logprobs.chosen) | {"top_logprobs": [entry(*each) for each in logprobs.best]}


def finish_reason(output: Output) -> str:
    """As the API says it."""
    return "stop" if output.finish_reason == "stop" else "length"


def usage(jobs: Sequence[Job], outputs: Sequence[Output]) -> dict[str, Any]:
    """Token counts of a request and, under ``elmoe``, how they came about."""
    prompts = {id(job.prompt): len(job.prompt) for job in jobs}
    prompt_tokens, completion_tokens = sum(prompts.values()), sum(len(output.token_ids) for output in outputs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": outputs[0].cached_tokens if outputs else 0},
        "elmoe": numbers(jobs, outputs),
    }


def numbers(jobs: Sequence[Job], outputs: Sequence[Output]) -> dict[str, Any]:
    """Acceptance, tokens by origin and times of a request; names as in `trace/schema.py`."""
    total = Acceptance()
    for output in outputs:
        total.add(output.acceptance)
    by_draft = sum(sum(output.drafted) for output in outputs)
    steps = sum(max(len(output.token_ids) - 1, 0) for output in outputs)
    decoding = sum(output.seconds - output.ttft_seconds for output in outputs)
    return {
        "acceptance_rate": total.acceptance_rate,
        "mean_accepted_length": total.mean_accepted_length,
        "ar_steps": total.ar_steps,
        "verify_steps": total.verify_steps,
        "drafted": total.drafted,
        "tested": total.tested,
        "accepted": total.accepted,
        "emitted": total.emitted,
        "tokens_by_draft": by_draft,
        "tokens_by_target": total.emitted - by_draft,
        "queue_seconds": max(job.queue_seconds for job in jobs),
        "ttft_seconds": max(output.ttft_seconds for output in outputs),
        "tpot_seconds": decoding / steps if steps else None,
    }


class Envelope:
    """What surrounds the choices of one response."""

    def __init__(self, kind: str, prefix: str, model: str) -> None:
        """kind: ``chat.completion`` or ``text_completion``."""
        self._chunk_kind = f"{kind}.chunk" if kind == "chat.completion" else kind
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}

    def whole(self, choices: list[dict[str, Any]], used: dict[str, Any]) -> dict[str, Any]:
        """A response that is not streamed."""
        return {**self._head, "choices": choices, "usage": used}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One event of a stream."""
        return {**self._head, "object": self._chunk_kind, "choices": choices, **more}
