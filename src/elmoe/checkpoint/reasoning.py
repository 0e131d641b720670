"""What a model thinks, kept apart from what it answers, while its tokens come in.

Models mark their reasoning in one of two ways: ``<think>`` ... ``</think>`` (Qwen3, GLM-4.7 and most others), or
messages in channels (Harmony of GPT-OSS: ``<|channel|>analysis<|message|>`` ...). Which one applies follows from the
model's chat template and vocabulary. It is decided on tokens, not on text, because the marks may be special tokens,
which are not in the text. Knows nothing about engines and requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from elmoe.checkpoint.text import Detokenizer, Tokenizer

OPEN, CLOSE = TAGS = "<think>", "</think>"
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
class CallPiece:
    """A piece of a message that is addressed to a tool."""

    index: int
    """Number of the message among those of this answer, from 0."""
    recipient: str
    """Whom the message is for: ``functions.search``."""
    text: str
    """What it adds to the arguments."""


@dataclass(frozen=True)
class Parts:
    """Pieces of the texts."""

    reasoning: str = ""
    answer: str = ""
    calls: tuple[CallPiece, ...] = ()


def reasoning_format(tokenizer: Tokenizer) -> ReasoningFormat:
    """How the model of this tokenizer marks its reasoning, by its chat template and its vocabulary."""
    if not tokenizer.has_chat_template:
        return ReasoningFormat.NONE
    harmony = (START, CHANNEL, MESSAGE)
    if all(tokenizer.token_id(mark) is not None and tokenizer.template_mentions(mark) for mark in harmony):
        return ReasoningFormat.HARMONY
    if any(tokenizer.token_id(tag) is not None or tokenizer.template_mentions(tag) for tag in TAGS):
        return ReasoningFormat.THINK
    return ReasoningFormat.NONE


class ReasoningStream:
    """Streams the two texts of the answer to one chat prompt: feed ids, get what they add to either.

    All pieces joined equal `split_reasoning` of all ids. Tags and channel marks are in neither text, nor are blanks
    next to tags; an answer without any mark is the text as it is. Reasoning that does not end is all reasoning.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], calls: bool = False) -> None:
        """For the answer to `prompt`, a chat's token ids, whose end may have opened the reasoning.

        calls: keep messages to tools apart (Harmony's recipients); otherwise they are reasoning.
        """
        self._state: _Thinking | _Harmony
        self._intake: _SpelledTags | _Thinking | _Harmony
        """What takes text in."""
        marks: tuple[str, ...] = ()
        form = reasoning_format(tokenizer)
        if form is ReasoningFormat.HARMONY:
            self._intake = self._state = _Harmony.after(tokenizer, prompt, calls)
            marks = HARMONY_MARKS
        else:
            tail = tokenizer.decode(prompt[-PROMPT_TAIL:], skip_special_tokens=False).rstrip()
            self._intake = self._state = _Thinking(form is ReasoningFormat.THINK and tail.endswith(OPEN))
            if form is ReasoningFormat.THINK and any(tokenizer.token_id(tag) is None for tag in TAGS):
                self._intake = _SpelledTags(self._state)
            elif form is ReasoningFormat.THINK:
                marks = TAGS
        self._marks = {number: mark for mark in marks if (number := tokenizer.token_id(mark)) is not None}
        self._textless = {number for number in self._marks if not tokenizer.decode([number])}
        """Marks that are special tokens: decoding leaves them out."""
        self._detokenizer = Detokenizer(tokenizer)

    def feed(self, ids: Iterable[int]) -> Parts:
        """What `ids` add; give no stop tokens."""
        return _joined(part for number in ids for part in self._read(number))

    def finish(self) -> Parts:
        """What was held back."""
        return _joined((self._intake.text(self._detokenizer.finish()), self._intake.finish()))

    def _read(self, number: int) -> Iterator[Parts]:
        mark = self._marks.get(number)
        if mark is not None and self._state.delimits(mark):
            yield self._intake.text(self._detokenizer.finish())
            if self._state.delimits(mark):  # still, though that was half a character
                self._state.mark(mark)
                return
        if mark is not None and number in self._textless:  # quoted
            yield self._intake.text(self._detokenizer.insert(mark))
        else:
            yield self._intake.text(self._detokenizer.feed([number]))


def split_reasoning(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> Parts:
    """The two texts of a whole answer `ids`, without its stop token, to the chat's token ids `prompt`."""
    stream = ReasoningStream(tokenizer, prompt)
    return _joined((stream.feed(ids), stream.finish()))


def _joined(parts: Iterable[Parts]) -> Parts:
    pieces = list(parts)
    return Parts(
        "".join(part.reasoning for part in pieces),
        "".join(part.answer for part in pieces),
        tuple(call for part in pieces for call in part.calls),
    )


class _Reasoning:
    """The reasoning's text: blocks without the blanks around them, an empty line between two."""

    def __init__(self) -> None:
        self.empty = True
        """Whether this block has nothing but blanks so far."""
        self._earlier, self._blanks = False, ""

    def write(self, piece: str) -> Parts:
        """Give out all but the blanks at its end, which may be the block's end."""
        text = self._blanks + piece
        if self.empty:
            text = text.lstrip()
        if not text:
            return Parts()
        lead = BETWEEN_BLOCKS if self._earlier and self.empty else ""
        body = text.rstrip()
        self.empty, self._blanks = False, text[len(body) :]
        return Parts(reasoning=lead + body)

    def end_block(self) -> None:
        self._earlier = self._earlier or not self.empty
        self.empty, self._blanks = True, ""


class _Thinking:
    """Tags: the reasoning, if any, comes before the answer. In the midst of the answer a tag is a quoted one."""

    def __init__(self, opened: bool) -> None:
        self._thinking, self._answering, self._tagged = opened, False, opened
        self._blanks = ""
        self._reasoning = _Reasoning()

    def text(self, piece: str) -> Parts:
        if self._thinking:
            return self._reasoning.write(piece)
        if self._answering:
            return Parts(answer=piece)
        text = self._blanks + piece
        if not text.strip():  # a tag may still come
            self._blanks = text
            return Parts()
        self._answering, self._blanks = True, ""
        return Parts(answer=text.lstrip() if self._tagged else text)

    def delimits(self, mark: str) -> bool:
        """Whether a tag is one, not quoted: a second opening one is where the reasoning has not begun."""
        return not self._answering and (mark == CLOSE or not self._thinking or self._reasoning.empty)

    def mark(self, mark: str) -> None:
        self._reasoning.end_block()
        self._thinking, self._tagged, self._blanks = mark == OPEN, True, ""

    def finish(self) -> Parts:
        return Parts(answer="" if self._tagged else self._blanks)


class _SpelledTags:
    """Finds tags that are no tokens in the text; holds back what may be the start of one."""

    def __init__(self, state: _Thinking) -> None:
        self._state, self._held = state, ""

    def text(self, piece: str) -> Parts:
        self._held += piece
        parts = []
        while tags := [(place, tag) for tag in TAGS if (place := self._held.find(tag)) >= 0]:
            place, tag = min(tags)
            parts.append(self._state.text(self._held[:place]))
            if self._state.delimits(tag):
                self._state.mark(tag)
            else:
                parts.append(self._state.text(tag))
            self._held = self._held[place + len(tag) :]
        certain = len(self._held) - _length_of_started_tag(self._held)
        parts.append(self._state.text(self._held[:certain]))
        self._held = self._held[certain:]
        return _joined(parts)

    def finish(self) -> Parts:
        return _joined((self._state.text(self._held), self._state.finish()))


def _length_of_started_tag(text: str) -> int:
    """Length of the end of a text with which a tag may begin."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in TAGS):
            return length
    return 0


class _Harmony:
    """Messages: a header (role, channel, recipient), then a body, which goes where its channel belongs.

    Text of headers and between messages is in neither part. Source: OpenAI, "Harmony response format".
    """

    def __init__(self, calls: bool = False) -> None:
        self._in_body, self._in_channel = True, False
        self._channel = ""
        self._separates_calls, self._calls = calls, -1
        """Whether messages to tools go apart, and how many there were, less one."""
        self._reasoning = _Reasoning()
        self._answered, self._lead = False, ""
        self._unmarked = ""
        """What the model writes before its first mark, in a header that the prompt began."""
        self._any_mark = False

    @classmethod
    def after(cls, tokenizer: Tokenizer, prompt: Sequence[int], calls: bool = False) -> _Harmony:
        """As the prompt's last, unfinished message leaves it: most often in a header, behind the role."""
        state = cls(calls)
        marks = {tokenizer.token_id(mark): mark for mark in HARMONY_MARKS}
        starts = [place for place, number in enumerate(prompt) if marks.get(number) == START]
        for number in prompt[starts[-1] :] if starts else ():
            if number in marks:
                state.mark(marks[number])
            elif not state._in_body:
                state.text(tokenizer.decode([number]))
        state._any_mark, state._unmarked = False, ""
        return state

    def text(self, piece: str) -> Parts:
        if self._in_channel:
            self._channel += piece
        elif not self._in_body:
            self._unmarked += piece
        elif self._separates_calls and self._recipient:
            return Parts(calls=(CallPiece(self._calls, self._recipient, piece),)) if piece else Parts()
        elif not self._is_answer:
            return self._reasoning.write(piece)
        elif piece:
            lead, self._lead, self._answered = self._lead, "", True
            return Parts(answer=lead + piece)
        return Parts()

    @property
    def _recipient(self) -> str:
        """Named behind the role or behind the channel: ``<|start|>assistant to=functions.f<|channel|>commentary``."""
        words = (self._unmarked + " " + self._channel).split()
        return next((word.removeprefix("to=") for word in words if word.startswith("to=")), "")

    @property
    def _is_answer(self) -> bool:
        name, *_ = [*self._channel.split(), ""]  # a recipient may follow: "commentary to=functions.search"
        return name in ANSWER_CHANNELS

    def delimits(self, mark: str) -> bool:
        return mark in HARMONY_MARKS

    def mark(self, mark: str) -> None:
        self._any_mark = True
        self._reasoning.end_block()
        self._in_body, self._in_channel = mark == MESSAGE, mark == CHANNEL
        if mark not in (MESSAGE, CONSTRAIN):
            self._channel = ""
        if mark not in (MESSAGE, CONSTRAIN, CHANNEL):
            self._unmarked = ""
        if mark == MESSAGE and self._separates_calls and self._recipient:
            self._calls += 1
        self._lead = BETWEEN_BLOCKS if self._answered else ""

    def finish(self) -> Parts:
        """A model that has written no mark at all has written an answer."""
        return Parts() if self._any_mark or self._in_body else Parts(answer=self._unmarked)
