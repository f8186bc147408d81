"""Makes `sentencepiece.json` with `sentencepiece` (pip install sentencepiece).

Two tiny BPE vocabularies with byte fallback, as those of Llama 2 (with a space before
every text) and Gemma (without), and how sentencepiece splits texts that they meet.
"""

import io
import json
import random
from pathlib import Path

import sentencepiece

WORDS = (
    "When Mary and John went to the store, John gave a drink to Mary. The Eiffel Tower "
    "is in Paris; the war lasted from 1732 to 1745! don't stop naïve cafés größer"
)
TEXTS = [
    "When Mary and John went to the store",
    " Mary",
    "Mary",
    "  two  spaces   and    more",
    "store, to",
    "line\nbreak\tand tab",
    "naïve cafés größer",
    "bytes: 日本語 🙂 \u0000",
    "1732 1745 99",
    "",
    "    ",
    "aaaaaaaaaaa",
    "<0x0A> is text",
]


def train(**options):
    draw = random.Random(0)
    lines = [
        " ".join(draw.choices(WORDS.split(), k=8)) + "  " * (i % 3) for i in range(400)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def described(processor):
    count = range(processor.get_piece_size())
    kind = lambda i: (  # noqa: E731
        2
        if processor.is_unknown(i)
        else 3
        if processor.is_control(i)
        else 6
        if processor.is_byte(i)
        else 5
        if processor.is_unused(i)
        else 1
    )
    return {
        "pieces": [processor.id_to_piece(i) for i in count],
        "scores": [processor.get_score(i) for i in count],
        "kinds": [kind(i) for i in count],
        "ids": [processor.encode(text) for text in TEXTS],
    }


if __name__ == "__main__":
    content = {
        "texts": TEXTS,
        "prefixed": described(train()),
        "plain": described(train(add_dummy_prefix=False)),
    }
    path = Path(__file__).parent / "sentencepiece.json"
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
