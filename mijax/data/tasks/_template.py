"""Prompts from templates, with the tokens of every slot."""

import string
from collections.abc import Mapping, Sequence

from mijax._errors import TokenError, nearest
from mijax.data.text._prompts import Prompts, check_prepend
from mijax.data.text._tokenizer import Tokenizer

Slots = dict[str, tuple[int, int]]


def fill(
    tokenizer: Tokenizer,
    template: str | Sequence[str],
    rows: Sequence[Mapping[str, str]],
    *,
    prepend: Sequence[int | None] = (),
    pad: int = 0,
) -> Prompts:
    """Fills the slots of a template and finds the tokens of each slot.

    A token that begins with the space before a slot belongs to the slot.

    Args:
        tokenizer: the model's tokenizer.
        template: text with slots, `"When {io} and {subject} went"`, or one such text
            per row, all with the same slots.
        rows: for each prompt, what to put into each slot.
        prepend: token ids to put before each text; spans are shifted by them.
        pad: token id to fill with.

    Returns:
        Prompts with a span for each slot, and `"last"`.

    Raises:
        TokenError: a slot of a row is missing or unknown, a slot occurs twice in the
            template, its text brings a second space, or does not begin and end
            between tokens; or rows that are not a list of mappings.

    Examples:
        >>> from tokenizers import Tokenizer as Backend, models, pre_tokenizers
        >>> backend = Backend(models.WordLevel({"hello": 0, "Mary": 1}, "hello"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> prompts = fill(Tokenizer(backend), "hello {name}", [{"name": "Mary"}])
        >>> prompts.position("name").tolist()
        [1]
    """
    if isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows):
        raise TokenError(
            f"rows is {rows!r:.60}, expected a list with a dict of slots for each "
            "prompt: write [{'name': 'Mary'}]."
        )
    templates = [template] * len(rows) if isinstance(template, str) else list(template)
    if len(templates) != len(rows):
        raise TokenError(
            f"{len(templates)} templates for {len(rows)} rows; give one or one per row."
        )
    filled = [fill_one(*pair) for pair in zip(templates, rows, strict=True)]
    for template_, (_, slots) in zip(templates, filled, strict=True):
        if slots.keys() != filled[0][1].keys():
            raise TokenError(
                f"The template {template_!r} has the slots {', '.join(slots)}, the "
                f"first has {', '.join(filled[0][1])}; give templates of equal slots."
            )
    check_prepend(prepend)
    ids, spans = [], {name: [] for name in (filled[0][1] if filled else ())}
    for text, slots in filled:
        tokens, offsets = tokenizer.offsets(text)
        ids.append([*prepend, *tokens])
        for name, slot in slots.items():
            start, stop = locate(tokenizer, text, tokens, offsets, name, slot)
            spans[name].append((start + len(prepend), stop + len(prepend)))
    return Prompts.from_ids(
        ids, texts=[text for text, _ in filled], spans=spans, pad=pad
    )


def fill_one(template: str, row: Mapping[str, str]) -> tuple[str, Slots]:
    """Fills one template; returns the text and the characters of each slot."""
    text, slots = "", {}
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is None:
            continue
        if name in slots:
            raise TokenError(
                f"The slot {name!r} occurs twice in {template!r}; "
                f"name the second {name + '2'!r}."
            )
        if name not in row:
            raise TokenError(
                f"The template needs a slot {name!r}, which the row {dict(row)} lacks."
            )
        if text.endswith(" ") and row[name].startswith(" "):
            raise TokenError(
                f"The slot {name!r} of {template!r} comes after a space and its text "
                f"{row[name]!r} begins with one: drop one of the two."
            )
        slots[name] = (len(text), len(text) + len(row[name]))
        text += row[name]
    for name in row:
        if name not in slots:
            raise TokenError(
                f"{template!r} has no slot {name!r}.{nearest(name, slots)}"
            )
    return text, slots


def locate(
    tokenizer: Tokenizer,
    text: str,
    tokens: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    name: str,
    slot: tuple[int, int],
) -> tuple[int, int]:
    """Finds the tokens of a slot, and refuses a token that straddles its ends."""
    start, stop = slot
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
    if not inside:
        raise TokenError(f"The slot {name!r} of {text!r} is empty; it has no tokens.")
    first = offsets[inside[0]][0]
    # Only a space may come along from before the slot.
    if text[first:start].strip(" ") or offsets[inside[-1]][1] > stop:
        bad = inside[0] if first < start else inside[-1]
        piece = tokenizer.pieces([tokens[bad]])[0]
        raise TokenError(
            f"The slot {name!r} ({text[start:stop]!r}) of {text!r} shares the token "
            f"{piece!r} with its neighbours; put a space before it."
        )
    return inside[0], inside[-1] + 1
