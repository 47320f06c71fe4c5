"""Tools and answer formats of a chat request, in OpenAI's shapes, and what they ask of the engine.

A schema that the engine cannot follow is refused when the request is submitted, by name; nothing is ignored
silently. ``strict`` makes no difference: every schema is followed strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autoglm.engine import JsonAnswer, Structure, ToolAnswer
from autoglm.errors import RequestError
from autoglm.model.tools import Tool

MAX_TOOLS = 64
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Describing = Annotated[str, Field(max_length=1 << 16)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class FunctionSpec(_Part):
    """What a tool is called, what it does and which arguments it takes."""

    name: Name
    description: Describing | None = None
    parameters: dict[str, Any] | None = None

    @field_validator("parameters")
    @classmethod
    def _take_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and value.get("type", "object") != "object":
            raise ValueError("the arguments of a tool must be an object")
        return value

    @property
    def tool(self) -> Tool:
        """The same for the engine."""
        return Tool(self.name, self.description or "", self.parameters or {"properties": {}})


class ToolSpec(_Part):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(_Part):
    """The name of a tool."""

    name: Name


class ChosenTool(_Part):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedSet(_Part):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(_Part):
    """Only some of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedSet


class CalledFunction(_Part):
    """A call that an earlier answer made; ``arguments`` is JSON as text."""

    name: Name
    arguments: Annotated[str, Field(max_length=1 << 20)]


class ToolCall(_Part):
    """A call in the history of a conversation."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class SchemaSpec(_Part):
    """A named JSON schema."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)
    name: Name
    description: Describing | None = None
    definition: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool | None = None


class AnswerFormat(_Part):
    """What an answer must look like: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaSpec | None = None

    @property
    def structure(self) -> JsonAnswer | None:
        """The same for the engine.

        Raises:
            RequestError: the schema is missing.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return JsonAnswer()
        if self.json_schema is None:
            raise RequestError("json_schema is missing", param="response_format")
        return JsonAnswer(self.json_schema.definition)


ToolChoice = Literal["none", "auto", "required"] | ChosenTool | AllowedTools
ToolSpecs = Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)]


def tools_of(specs: Sequence[ToolSpec] | None, choice: ToolChoice | None) -> tuple[Tool, ...]:
    """Return the tools that the model is told of and may call.

    Raises:
        RequestError: two have one name, or the chosen one is not among them.
    """
    tools = tuple(spec.function.tool for spec in specs or ())
    if len({tool.name for tool in tools}) != len(tools):
        raise RequestError("two tools have the same name", param="tools")
    for wanted in _named(choice):
        if wanted not in {tool.name for tool in tools}:
            raise RequestError(f"the tool {wanted!r} is not among the tools", param="tool_choice")
    if named := _named(choice):
        tools = tuple(tool for tool in tools if tool.name in named)
    if choice == "required" and not tools:
        raise RequestError("a call is required, but no tool is given", param="tool_choice")
    return () if choice == "none" else tools


def _named(choice: ToolChoice | None) -> list[str]:
    """Return the names of the tools that may be called; none when all may."""
    if isinstance(choice, ChosenTool):
        return [choice.function.name]
    return (
        [each.function.name for each in choice.allowed_tools.tools]
        if isinstance(choice, AllowedTools)
        else []
    )


def structure_of(
    tools: tuple[Tool, ...], choice: ToolChoice | None, wanted: AnswerFormat | None, parallel: bool
) -> Structure | None:
    """Return the form that the answer must have, None when it is free.

    Raises:
        RequestError: a schema is missing.
    """
    answer = wanted.structure if wanted else None
    if not tools:
        return answer
    is_named = isinstance(choice, ChosenTool)
    is_required = is_named or choice == "required"
    if isinstance(choice, AllowedTools):
        is_required = choice.allowed_tools.mode == "required"
    return ToolAnswer(tools, None if is_required else answer, is_required, parallel and not is_named)
