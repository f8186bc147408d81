from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mijax._errors import LoadError, PositionError, TokenError
from mijax.data import Prompts, Tokenizer, aligned, fill, read_tokenizer
from mijax.data.tasks._ioi import NAMES, OBJECTS, PLACES, TEMPLATES
from mijax.models import load

HF = Path(__file__).parents[1] / "golden" / "hf"


def byte_level(words):
    """A byte-level BPE tokenizer in which each word after a space is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {c: i for i, c in enumerate(alphabet)}, []
    for word in words:
        piece = "Ġ"
        for character in word:
            if piece + character not in vocab:
                vocab[piece + character] = len(vocab)
                merges.append((piece, character))
            piece += character
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    return Tokenizer(backend, bos=backend.token_to_id("<s>"))


@pytest.fixture(scope="module")
def tokenizer():
    text = " ".join((*NAMES, *PLACES, *OBJECTS, *TEMPLATES, "hello New York"))
    return byte_level(sorted(set(text.replace(",", " ").replace(".", " ").split())))


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


def test_tokenizer(tokenizer):
    text = " Mary naïve 🙂\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = tokenizer.pieces(ids)
    assert pieces[0] == " Mary"
    assert pieces[-1] == "↵"
    assert "\\xf0" in pieces
    assert all(piece.isprintable() for piece in pieces)
    assert tokenizer.token(" Mary") == ids[0]
    assert tokenizer.pieces([tokenizer.bos]) == ["<s>"]
    assert tokenizer.encode("<s>") == [tokenizer.bos]
    assert tokenizer.vocab_size > 256
    with pytest.raises(TokenError) as caught:
        tokenizer.token("Mary")
    one_line(caught, "4 tokens", "'M', 'a', 'r', 'y'")
    with pytest.raises(TokenError) as caught:
        tokenizer.token("")
    one_line(caught, "nothing")
    for index in (-1, 10**6):
        with pytest.raises(TokenError) as caught:
            tokenizer.pieces([index])
        one_line(caught, index)


def test_word_pieces_are_shown_as_they_are():
    vocab = {"é": 0, "▁a": 1, "[UNK]": 2}
    tokenizer = Tokenizer(Backend(models.WordLevel(vocab, "[UNK]")))
    assert tokenizer.pieces([0, 1]) == ["é", " a"]


def test_padding_and_truncation_in_the_file_are_ignored(tmp_path):
    backend = Backend.from_file(str(HF / "gpt2" / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json")
    assert len(tokenizer.encode("one two three")) > 2
    assert len(tokenizer.encode("a")) == 1
    with pytest.raises(LoadError):
        read_tokenizer(tmp_path / "none.json")
    given = Tokenizer(backend)
    assert len(given.encode("one two three")) > 2
    assert len(given.encode("a")) == 1
    assert backend.padding["length"] == 8, "what was given stays as it was"
    backend.encode_special_tokens = True
    assert Tokenizer(backend).backend.encode_special_tokens


class Halves:
    def pre_tokenize(self, text):
        text.split(lambda _, piece: [piece[:1], piece[1:]])


def test_tokenizers_with_code_of_ones_own(tmp_path):
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, "b"))
    backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Halves())
    assert Tokenizer(backend).encode("ab") == [0, 1]
    backend.enable_padding(length=8)
    with pytest.raises(TokenError, match="no_padding"):
        Tokenizer(backend)


def test_prompts(tokenizer):
    texts = [" Mary hello", " John"]
    prompts = Prompts.from_texts(tokenizer, texts, prepend=[tokenizer.bos], pad=7)
    assert len(prompts) == 2
    assert prompts.tokens.dtype == jnp.int32
    assert prompts.tokens.tolist() == [
        [tokenizer.bos, tokenizer.token(" Mary"), tokenizer.token(" hello")],
        [tokenizer.bos, tokenizer.token(" John"), 7],
    ]
    assert prompts.lengths.tolist() == [3, 2]
    assert prompts.last.tolist() == prompts.position("last").tolist() == [2, 1]
    assert prompts.mask.tolist() == [[True] * 3, [True, True, False]]
    assert prompts.texts == tuple(texts)
    for index, kept in ((1, [1]), (-1, [1]), (slice(1, 2), [1]), ([1, 0], [1, 0])):
        part = prompts[index]
        np.testing.assert_array_equal(part.tokens, prompts.tokens[jnp.array(kept)])
        assert part.texts == tuple(texts[i] for i in kept)
        assert part.last.shape == (len(kept),)
    assert [len(prompt) for prompt in prompts] == [1, 1]
    assert jax.jit(lambda p: p.last)(prompts).tolist() == [2, 1]


def test_prompt_errors(tokenizer):
    prompts = Prompts.from_ids([[1]])
    with pytest.raises(PositionError) as caught:
        prompts.position("lst")
    one_line(caught, "'last'")
    for ids in ([], [[1], []]):
        with pytest.raises(PositionError):
            Prompts.from_ids(ids)
    with pytest.raises(IndexError):
        prompts[1]
    with pytest.raises(PositionError) as caught:
        aligned(Prompts.from_ids([[1], [2]]), prompts)
    one_line(caught, "2 clean", "1 corrupt")
    clean = Prompts.from_texts(tokenizer, [" Mary", " John"])
    corrupt = Prompts.from_texts(tokenizer, [" Anna", " Zyx"])
    with pytest.raises(PositionError) as caught:
        aligned(clean, corrupt)
    one_line(caught, "Prompt 1", "' John'", "' Zyx'")


def test_fill(tokenizer):
    prompts = fill(
        tokenizer,
        "hello {place}, {name} and{rest}!",
        [
            {"place": "New York", "name": "Mary", "rest": " hello"},
            {"place": "park", "name": "Zyx", "rest": " Mary"},
        ],
        prepend=[tokenizer.bos],
    )
    assert prompts.texts[0] == "hello New York, Mary and hello!"
    for name, expected in (
        ("place", [[" New", " York"], [" park"]]),
        ("name", [[" Mary"], ["Z", "y", "x"]]),
        ("rest", [[" hello"], [" Mary"]]),
        ("last", [["!"], ["!"]]),
    ):
        span = prompts.span(name)
        for row, start, stop, pieces in zip(
            prompts.tokens, span.start, span.stop, expected, strict=True
        ):
            assert tokenizer.pieces(row[start:stop].tolist()) == pieces
        np.testing.assert_array_equal(prompts.position(name), span.stop - 1)


def test_fill_where_offsets_leave_out_the_space():
    """`trim_offsets` in a post-processor moves offsets past the leading space."""
    tokenizer = byte_level(["Mary"])
    from tokenizers import processors  # noqa: PLC0415

    tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=True)
    prompts = fill(tokenizer, "a {name}", [{"name": "Mary"}])
    span = prompts.span("name")
    assert (span.start.tolist(), span.stop.tolist()) == ([1], [2])


@pytest.mark.parametrize(
    ("template", "row", "word"),
    [
        ("{a} {b}", {"a": "x"}, "'b'"),
        ("{name}", {"name": "x", "nmae": "y"}, "'nmae'"),
        ("{a} {a}", {"a": "x"}, "'a2'"),
        ("{a}b", {"a": ""}, "empty"),
        (" Ma{a}", {"a": "ry"}, "' Mary'"),
        (" {a}ry", {"a": "Ma"}, "' Mary'"),
        ("hello {a}", {"a": " Mary"}, "drop one of the two"),
        ("{a}{b}", {"a": "hello ", "b": " Mary"}, "'b'"),
    ],
)
def test_fill_errors(tokenizer, template, row, word):
    with pytest.raises(TokenError) as caught:
        fill(tokenizer, template, [row])
    one_line(caught, word)


@pytest.mark.parametrize("rows", [{"name": "Mary"}, ["Mary"], "Mary"])
def test_rows_are_a_list_of_slots(unchecked, tokenizer, rows):
    with pytest.raises(TokenError) as caught:
        fill(tokenizer, "hello {name}", rows)
    one_line(caught, "Mary", "list with a dict")


def test_one_text_is_not_a_batch(unchecked, tokenizer):
    with pytest.raises(TokenError) as caught:
        Prompts.from_texts(tokenizer, "Mary went")
    one_line(caught, "'Mary went'", "[text]")
    for call in (tokenizer.encode, tokenizer.token, tokenizer.offsets):
        with pytest.raises(TokenError) as caught:
            call([" Mary", " John"])
        one_line(caught, "list", "' Mary'", "Prompts.from_texts")


def test_decode_takes_a_batch(tokenizer):
    texts = [" Mary and", " John hello"]
    tokens = Prompts.from_texts(tokenizer, texts).tokens
    assert tokens.shape == (2, 2)
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens.tolist()) == texts
    assert tokenizer.decode(np.asarray(tokens)[0]) == texts[0]
    assert tokenizer.decode([tokens[0], tokens[1, :1]]) == [texts[0], " John"]
    assert tokenizer.decode(tokens[:0]) == []
    assert tokenizer.decode([]) == ""
    for ids in (3, tokens[0, 0], tokens[None]):
        with pytest.raises(TokenError) as caught:
            tokenizer.decode(ids)
        one_line(caught, f"rank {np.ndim(ids)}", "[batch, seq]")


def test_fill_with_templates_that_differ(tokenizer):
    with pytest.raises(TokenError):
        fill(tokenizer, ["{a}"], [{"a": "x"}, {"a": "y"}])
    with pytest.raises(TokenError) as caught:
        fill(tokenizer, ["{a}", "{b}"], [{"a": "x"}, {"b": "y"}])
    one_line(caught, "'{b}'")


def test_tokenizer_from_pieces():
    tokenizer = Tokenizer.from_pieces([" Mary", " Ma", " 17", "32", "ï"])
    for text, expected in (
        (" Mary 1732", [" Mary", " 17", "32"]),
        (" Max\n", [" Ma", "x", "↵"]),
        ("naï", ["n", "a", "ï"]),
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.pieces(ids) == expected
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("A ") == [tokenizer.token("A"), tokenizer.token(" ")]
    assert tokenizer.token(" Mary") == 256
    for piece in ("two words", ""):
        with pytest.raises(TokenError):
            Tokenizer.from_pieces([piece])


def test_golden_tokenizer():
    tokenizer = load(HF / "gpt2").tokenizer
    text = "naïve café, 日本語 and 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert all(p.isprintable() for p in tokenizer.pieces(tokenizer.encode(text)))
