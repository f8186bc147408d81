"""Tokenizers that begin texts with a space, chat templates, parts of texts."""

import functools

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from mijax import data
from mijax._errors import PositionError, TokenError
from mijax.data import ChatTemplate, Prompts, Tokenizer
from mijax.data.tasks._capitals import CAPITALS
from mijax.data.tasks._ioi import NAMES, OBJECTS, PLACES


@functools.cache
def llama2():
    """Words in the manner of Llama 2: `▁` for spaces, one before every text."""
    capitals = [word for pair in CAPITALS for word in pair]
    words = [f"▁{w}" for w in (*NAMES, *PLACES, *OBJECTS, *capitals, "When", "went")]
    letters = sorted({c for word in words for c in word} | set(".,:?!'0123456789"))
    vocab, merges = ["<unk>", "<s>", "</s>", *letters], []
    for word in words:
        left = word[0]
        for letter in word[1:]:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            if left not in vocab:
                vocab.append(left)
    ids = {piece: index for index, piece in enumerate(vocab)}
    backend = Backend(models.BPE(ids, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return Tokenizer(backend, bos=1, eos=2)


def test_a_word_of_a_prefixing_tokenizer_is_the_one_in_the_text():
    tokenizer = llama2()
    ids = tokenizer.encode("When Mary went")
    assert tokenizer.token(" Mary") == tokenizer.token("Mary") == ids[1]
    assert tokenizer.is_token(" Mary")
    assert not tokenizer.is_token(" Marylebone")
    assert tokenizer.pieces([tokenizer.token(",")]) == [","]
    assert tokenizer.pieces(tokenizer.continuation("17")) == ["1", "7"]
    assert tokenizer.encode(" Mary") != [ids[1]], "encode stays that of the backend"


@pytest.mark.parametrize("task", ["ioi", "capitals"])
def test_tasks_take_prefixing_tokenizers(task):
    tokenizer = llama2()
    pairs = getattr(data, task)(tokenizer, 4)
    for text, answer in zip(pairs.clean.texts, pairs.answer.tolist(), strict=True):
        word = tokenizer.pieces([answer])[0]
        whole = tokenizer.encode(text + word)
        assert whole == [*tokenizer.encode(text), answer]


def test_prepending_a_token_that_the_tokenizer_lacks():
    tokenizer = Tokenizer.from_pieces([" Mary"])
    with pytest.raises(TokenError, match="no BOS token"):
        Prompts.from_texts(tokenizer, [" Mary"], prepend=[tokenizer.bos])
    with pytest.raises(TokenError, match="no BOS token"):
        data.fill(tokenizer, "{a}", [{"a": " Mary"}], prepend=[tokenizer.bos])


def test_parts_of_texts():
    tokenizer = Tokenizer.from_pieces([" Mary", " Ma", "rk", " went"])
    prompts = Prompts.from_texts(
        tokenizer,
        [" Mary went", " Mark went"],
        prepend=[0],
        spans={"name": ["Mary", "Mark"], "verb": "went", "end": "nt"},
    )
    start, stop = prompts.find("name")
    assert (start.tolist(), stop.tolist()) == ([1, 1], [2, 3])
    assert prompts.position("verb").tolist() == [2, 3]
    assert prompts.find("end")[0].tolist() == [2, 3], "a part of a token is that token"
    for spans, word in (
        ({"a": "John"}, "occurs 0 times"),
        ({"a": ["Mary", ""]}, "occurs 0 times"),
        ({"a": ["Mary", "r"]}, None),
        ({"a": ["Mary", " "]}, "occurs 2 times"),
        ({"a": ["Mary"]}, "1 parts for 2 texts"),
    ):
        make = functools.partial(
            Prompts.from_texts, tokenizer, [" Mary went", " Mark went"], spans=spans
        )
        if word is None:
            make()
            continue
        with pytest.raises(PositionError, match=word):
            make()


CHAT = [{"role": "user", "content": "a < b"}]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s>a < b"),
        ("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}", "  user\n"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "a < b"}]'),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% for m in messages %}{% break %}{% endfor %}y", "y"),
        ("{% if add_generation_prompt %}now{% endif %}", "now"),
        ("{{ tools is none }}", "True"),
    ],
)
def test_chat_templates(source, text):
    tokenizer = Tokenizer(llama2().backend, bos=1, template=ChatTemplate(source))
    assert tokenizer.chat(CHAT) == text


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for", "Unexpected end|expected"),
        ("{{ missing.key }}", "undefined"),
    ],
)
def test_templates_that_refuse(source, word):
    tokenizer = Tokenizer(llama2().backend, template=ChatTemplate(source))
    with pytest.raises(TokenError, match=word):
        tokenizer.chat(CHAT)


def test_no_template():
    with pytest.raises(TokenError, match="no chat template"):
        llama2().chat(CHAT)
