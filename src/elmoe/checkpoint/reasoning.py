"""What a model thinks, kept apart from what it answers, while its tokens come in.

Models mark their reasoning in one of two ways: ``<think>`` ... ``</think>`` (Qwen3, GLM-4.7 and most others), or
messages in channels (Harmony of GPT-OSS: ``<|channel|>analysis<|message|>`` ...). Which one applies follows from the
model's chat template and vocabulary. It is decided on tokens, not on text, because the marks may be special tokens,
which are not in the text. Knows nothing about engines and requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from elmoe.checkpoint.text import Detokenizer, Tokenizer

OPEN, CLOSE = "<think>", "</think>"
START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
MESSAGE_ENDS = ("<|end|>", "<|return|>", "<|call|>")
HARMONY_MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, *MESSAGE_ENDS)
ANSWER_CHANNELS = ("final", "")
"""Channels of the answer: what is in others (analysis, commentary) is reasoning; a message may have none."""
PROMPT_TAIL = 16
"""Tokens of a prompt's end among which a tag opened there is looked for; it takes seven where letters are tokens."""
BETWEEN_BLOCKS = "\n\n"


class ReasoningFormat(Enum):
    """How a model marks its reasoning."""

    NONE = "none"
    THINK = "think"
    HARMONY = "harmony"


@dataclass(frozen=True)
class Parts:
    """Pieces of the two texts."""

    reasoning: str = ""
    answer: str = ""

    def __add__(self, more: Parts) -> Parts:
        return Parts(self.reasoning + more.reasoning, self.answer + more.answer)


def reasoning_format(tokenizer: Tokenizer) -> ReasoningFormat:
    """How the model of this tokenizer marks its reasoning, by its chat template and its vocabulary."""
    if not tokenizer.has_chat_template:
        return ReasoningFormat.NONE
    harmony = (START, CHANNEL, MESSAGE)
    if all(tokenizer.token_id(mark) is not None and tokenizer.template_mentions(mark) for mark in harmony):
        return ReasoningFormat.HARMONY
    if any(tokenizer.token_id(tag) is not None or tokenizer.template_mentions(tag) for tag in (OPEN, CLOSE)):
        return ReasoningFormat.THINK
    return ReasoningFormat.NONE


class ReasoningStream:
    """Streams the two texts of the answer to one chat prompt: feed ids, get what they add to either.

    All pieces joined equal `split_reasoning` of all ids. Tags and channel marks are in neither text, nor are blanks
    next to them; an answer without any mark is the text as it is. Reasoning that does not end is all reasoning.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        """For the answer to `prompt`, a chat's token ids, whose end may have opened the reasoning."""
        self._state, marks = _start(tokenizer, prompt)
        self._marks = {number: mark for mark in marks if (number := tokenizer.token_id(mark)) is not None}
        self._detokenizer = Detokenizer(tokenizer)

    def feed(self, ids: Iterable[int]) -> Parts:
        """What `ids` add; give no stop tokens."""
        parts = Parts()
        for number in ids:
            if number in self._marks:
                parts += self._state.text(self._detokenizer.finish())
                parts += self._state.mark(self._marks[number])
            else:
                parts += self._state.text(self._detokenizer.feed([number]))
        return parts

    def finish(self) -> Parts:
        """What was held back."""
        return self._state.text(self._detokenizer.finish()) + self._state.finish()


def split_reasoning(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> Parts:
    """The two texts of a whole answer `ids`, without its stop token, to the chat's token ids `prompt`."""
    stream = ReasoningStream(tokenizer, prompt)
    return stream.feed(ids) + stream.finish()


class _State(Protocol):
    """What has been read so far decides where text goes."""

    def text(self, piece: str) -> Parts:
        """Take text in."""

    def mark(self, mark: str) -> Parts:
        """Take a mark in that is one token."""

    def finish(self) -> Parts:
        """Give out what was held back."""


def _start(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[_State, Sequence[str]]:
    """The state after the prompt, and the marks that are tokens."""
    match reasoning_format(tokenizer):
        case ReasoningFormat.NONE:
            return _Plain(), ()
        case ReasoningFormat.HARMONY:
            return _after_prompt(tokenizer, prompt), HARMONY_MARKS
        case ReasoningFormat.THINK:
            opened = tokenizer.decode(prompt[-PROMPT_TAIL:], skip_special_tokens=False).rstrip().endswith(OPEN)
            are_tokens = tokenizer.token_id(CLOSE) is not None
            state = _Thinking(opened)
            return (state, (OPEN, CLOSE)) if are_tokens else (_SpelledTags(state), ())


class _Plain:
    """A model that marks no reasoning."""

    def text(self, piece: str) -> Parts:
        return Parts(answer=piece)

    def mark(self, mark: str) -> Parts:
        return self.text(mark)

    def finish(self) -> Parts:
        return Parts()


class _Blocks:
    """The reasoning: blocks without the blanks around them, an empty line between two."""

    def __init__(self) -> None:
        self._inside, self._earlier, self._blanks = False, False, ""

    @property
    def empty(self) -> bool:
        """Whether this block has nothing but blanks so far."""
        return not self._inside

    def write(self, piece: str) -> Parts:
        """Give out all but the blanks at its end: they may be the block's."""
        text = self._blanks + piece
        if not self._inside:
            text = text.lstrip()
        if not text:
            return Parts()
        lead = BETWEEN_BLOCKS if self._earlier and not self._inside else ""
        body = text.rstrip()
        self._inside, self._blanks = True, text[len(body) :]
        return Parts(reasoning=lead + body)

    def end(self) -> None:
        self._earlier = self._earlier or self._inside
        self._inside, self._blanks = False, ""


class _Thinking:
    """Tags: reasoning, if any, comes before the answer. In the midst of an answer a tag is a quoted one, text."""

    def __init__(self, opened: bool) -> None:
        self._thinking, self._answering, self._tagged = opened, False, opened
        self._blanks = ""
        self._reasoning = _Blocks()

    def text(self, piece: str) -> Parts:
        if self._thinking:
            return self._reasoning.write(piece)
        if self._answering:
            return Parts(answer=piece)
        text = self._blanks + piece  # until more than blanks has come, a tag may come
        if not text.strip():
            self._blanks = text
            return Parts()
        self._answering = True
        return Parts(answer=text.lstrip() if self._tagged else text)

    def mark(self, mark: str) -> Parts:
        if self._answering:
            return Parts(answer=mark)
        if self._thinking and mark == OPEN:  # a second one at its start says what the prompt's end said
            return Parts() if self._reasoning.empty else self._reasoning.write(mark)
        self._reasoning.end()
        self._thinking, self._tagged, self._blanks = mark == OPEN, True, ""
        return Parts()

    def finish(self) -> Parts:
        return Parts(answer="" if self._tagged else self._blanks)


class _SpelledTags:
    """Finds tags that are no tokens in the text; holds back what may be the start of one."""

    def __init__(self, state: _Thinking) -> None:
        self._state, self._held = state, ""

    def text(self, piece: str) -> Parts:
        self._held += piece
        parts = Parts()
        while (found := _first_tag(self._held)) is not None:
            place, tag = found
            parts += self._state.text(self._held[:place]) + self._state.mark(tag)
            self._held = self._held[place + len(tag) :]
        certain = len(self._held) - _length_of_started_tag(self._held)
        parts += self._state.text(self._held[:certain])
        self._held = self._held[certain:]
        return parts

    def mark(self, mark: str) -> Parts:
        return self.text(mark)

    def finish(self) -> Parts:
        return self._state.text(self._held) + self._state.finish()


def _first_tag(text: str) -> tuple[int, str] | None:
    """(place, tag) of the first tag in a text."""
    return min(((place, tag) for tag in (OPEN, CLOSE) if (place := text.find(tag)) >= 0), default=None)


def _length_of_started_tag(text: str) -> int:
    """Length of the end of a text that a tag may begin with."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in (OPEN, CLOSE)):
            return length
    return 0


class _Harmony:
    """Messages: a header (role, channel, recipient), then a body, which goes where its channel belongs.

    Source: OpenAI, "Harmony response format". Text of headers, and between messages, is in neither part.
    """

    def __init__(self) -> None:
        self._in_body, self._channel = True, ""
        self._in_channel_name = False
        self._reasoning = _Blocks()
        self._answered = False
        self._unmarked: str | None = ""
        """The text of a header that the prompt began, None once a mark has come: a model that writes none of the
        marks has written an answer."""

    def text(self, piece: str) -> Parts:
        if self._in_body:
            return self._body(piece)
        if self._in_channel_name:
            self._channel += piece
        elif self._unmarked is not None:
            self._unmarked += piece
        return Parts()

    def _body(self, piece: str) -> Parts:
        if not piece:
            return Parts()
        if self._is_answer:
            self._answered = True
            return Parts(answer=piece)
        return self._reasoning.write(piece)

    @property
    def _is_answer(self) -> bool:
        words = self._channel.split()  # the recipient may follow: "commentary to=functions.search"
        return (words[0] if words else "") in ANSWER_CHANNELS

    def mark(self, mark: str) -> Parts:
        self._unmarked = None
        self._reasoning.end()
        self._in_body, self._in_channel_name = mark == MESSAGE, mark == CHANNEL
        if mark not in (MESSAGE, CONSTRAIN):
            self._channel = ""
        lead = BETWEEN_BLOCKS if self._in_body and self._is_answer and self._answered else ""
        return Parts(answer=lead)

    def finish(self) -> Parts:
        return Parts(answer="" if self._in_body else self._unmarked or "")

    def forget_prompt(self) -> None:
        """From here on it is the model that writes."""
        self._reasoning.end()
        self._answered, self._unmarked = False, ""


def _after_prompt(tokenizer: Tokenizer, prompt: Sequence[int]) -> _Harmony:
    """The state that the prompt's last, unfinished message leaves: most often a header with the role alone."""
    state = _Harmony()
    marks = {number: mark for mark in HARMONY_MARKS if (number := tokenizer.token_id(mark)) is not None}
    starts = [place for place, number in enumerate(prompt) if marks.get(number) == START]
    for number in prompt[starts[-1] :] if starts else ():
        if number in marks:
            state.mark(marks[number])
        else:
            state.text(tokenizer.decode([number]))
    state.forget_prompt()
    return state
