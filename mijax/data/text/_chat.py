"""Templates by which models write conversations."""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mijax._errors import TokenError


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The jinja2 template of a model's conversations.

    Rendering is sandboxed as in transformers: templates come with weights from the hub.

    Attributes:
        source: the template.
        tokens: special tokens by the names that the template uses, such as
            `{"bos_token": "<s>"}`; they take precedence over those of the tokenizer.
    """

    source: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> str:
        """Write a conversation.

        Args:
            messages: the messages, in order.
            variables: other variables of the template.

        Returns:
            The text.

        Raises:
            TokenError: the template is broken, or refuses these messages.
        """
        given = {"tools": None, "documents": None, **variables, **self.tokens}
        try:
            template = environment().from_string(self.source)
            return template.render(messages=list(messages), **given)
        except Exception as error:  # templates raise any kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TokenError(
                f"The chat template cannot write these messages: {reason}. Give "
                "messages with the keys 'role' and 'content', in the order that the "
                "model expects."
            ) from error


@functools.cache
def environment() -> Any:
    """Build the sandbox of transformers' templates."""
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415 - rarely needed
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """Accept `{% generation %}`, which marks the text of the assistant."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    def as_json(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = as_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made
