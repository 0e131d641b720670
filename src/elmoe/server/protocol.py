"""The documents that clients send, as pydantic models: the OpenAI API's fields, and elmoe's own.

A field that is not here is refused by name. A field that the API knows and this server does not do is here with the
only values that ask for nothing (`NOTHING`), so that clients which always send it are served. Knows nothing about
engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Json = dict[str, Any]
MOST_VERIFIED = 128
"""Draft tokens that one request may have verified per step."""


class Document(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class TextPart(Document):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(Document):
    """What an assistant's message called."""

    name: str
    arguments: str


class ToolCall(Document):
    """Likewise."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Document):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class Function(Document):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Document):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(Document):
    """A function's name."""

    name: str


class NamedTool(Document):
    """The one tool to use."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Document):
    """A schema that the answer follows."""

    name: str
    description: str | None = None
    schema_: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextFormat(Document):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Document):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Document):
    """A JSON text by a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Document):
    """What a stream has beside the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    include_drafted: bool = False
    """elmoe: say of each piece of text whether the draft had proposed it."""


class SpeculationFields(Document):
    """elmoe: this request's own Elastic-SD settings; those left out are the server's. Others share its passes, so trees
    are smaller than the engine would allow.
    """

    mode: Literal["ar", "sd", "auto"] | None = None
    width: Annotated[int, Field(ge=1, le=16)] | None = None
    depth: Annotated[int, Field(ge=0, le=32)] | None = None
    verify: Annotated[int, Field(ge=1, le=MOST_VERIFIED)] | None = None


class GenerationFields(Document):
    """What both kinds of completions have."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Number | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=256)] | None = None
    logit_bias: dict[str, Number] | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    """Give the generated tokens too, as ``token_ids`` of each choice: what there is of a model without a tokenizer."""
    speculation: SpeculationFields | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None


class ChatRequest(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Json | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    metadata: Any = None
    modalities: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class TokenizeRequest(Document):
    """POST /tokenize: a text, or a chat as its template renders it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Document):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Token]


NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None,),
    "functions": (None,),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""By field, the values with which it asks for nothing."""
