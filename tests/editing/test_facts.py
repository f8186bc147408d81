"""Facts in words: where the subject is, what is refused."""

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

import mijax
from mijax.editing import (
    MEMIT,
    MEMIT_CONTEXTS,
    ROME,
    ROME_CONTEXTS,
    Contexts,
    Covariance,
    Fact,
    Requests,
    Uncorrected,
    ValueSearch,
    covariance,
    rewrite,
)

WORDS = ["Eif", "fel", " Eif", " is", " in", " a", " Rome", " Italy", " So", "So"]
TOKENIZER = mijax.data.Tokenizer.from_pieces(WORDS)
ID = {word: TOKENIZER.token(word) for word in [*WORDS, "."]}
METHOD = ROME(layer=1, covariance=Uncorrected())


class Language:
    model = cases.model("gpt2")
    tokenizer = TOKENIZER


def test_the_subject_is_found_in_every_context():
    contexts = Contexts((("{}", "So. {}"),))
    fact = Fact("{} is in", "Eiffel", "Rome Italy")
    found = Requests.from_texts(TOKENIZER, [fact], contexts)

    def ids(*words):
        return [ID[word] for word in words]

    rows = [
        ids("Eif", "fel", " is", " in", " Rome"),
        ids("So", ".", " Eif", "fel", " is", " in", " Rome"),
        ids("Eif", "fel", " is", " a"),
    ]
    for row, tokens in zip(rows, found.tokens[0], strict=True):
        assert tokens[: len(row)].tolist() == row
    assert found.lookup.tolist() == [[1, 3, 1]]
    assert found.ends.tolist() == [[4, 6]]
    assert found.target.tolist() == [ids(" Rome", " Italy")]
    assert found.lengths.tolist() == [2]


def test_special_tokens_come_first():
    special = mijax.data.Tokenizer.from_pieces(WORDS)
    special.backend.post_processor = processors.TemplateProcessing(
        single="Eif $A", special_tokens=[("Eif", ID["Eif"])]
    )
    fact = Fact("{} is in", "Eiffel", " Rome")
    found = Requests.from_texts(special, [fact], Contexts((("{}",),)))
    assert found.tokens[0, 0, :5].tolist() == [
        ID["Eif"],
        *(ID[word] for word in ("Eif", "fel", " is", " in")),
    ]
    assert found.lookup.tolist() == [[2, 2]]
    assert found.ends.tolist() == [[5]]


def test_weights_of_contexts():
    assert len(ROME_CONTEXTS.texts) == 21
    np.testing.assert_allclose(ROME_CONTEXTS.weights, 1 / 21)
    np.testing.assert_allclose(MEMIT_CONTEXTS.weights, [0.5, *[0.1] * 5])
    for groups in ((("So. {}",),), (("{}", "So"),), ((),)):
        with pytest.raises(mijax.MijaxError, match="ontext"):
            Contexts(groups)


def test_refused_facts(unchecked):
    for match, given in [
        ("0 places for the subject 'Paris'", ("Rome is in", "Paris", "Italy")),
        ("2 places", ("{} is in {}", "Paris", "Italy")),
        ("subject and a target", ("{} is in", " ", "Italy")),
        ("subject and a target", ("{} is in", "Paris", "")),
    ]:
        with pytest.raises(mijax.MijaxError, match=match) as error:
            Fact(*given)
        assert "\n" not in str(error.value)
    fact = Fact("{} is in", "Paris", "Italy", "France", ["A", "B"])
    assert (fact.target, fact.true, fact.paraphrases) == (
        " Italy",
        " France",
        ("A", "B"),
    )


def test_refused_requests():
    for match, given in [
        ("no tokens", ([[[5, 6], [5]]], [[0, 0]], [[]])),
        ("position 2 in a prompt with 2 tokens", ([[[5, 6], [5]]], [[2, 0]], [[7]])),
        ("one prompt per context plus one more", ([[[5, 6]]], [[0]], [[7]])),
        ("one prompt per context plus one more", ([[[5], [5]]], [[0]], [[7]])),
    ]:
        with pytest.raises(mijax.MijaxError, match=match):
            Requests.from_ids(*given)


def test_refused_models_and_methods(unchecked):
    fact = Fact("{} is in", "Eiffel", "Rome")
    ids = Requests.from_ids([[[5, 6], [5, 7]]], [[0, 0]], [[9]])
    model = cases.model("gpt2")
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 64)
    few = covariance(model, tokens, layers=[1])
    other = covariance(cases.model("llama"), tokens, layers=[1])
    long = Requests.from_ids([[[5] * 40, [5, 7]]], [[0, 0]], [[9]])
    beyond = Requests.from_ids([[[5, 6], [5, 7]]], [[0, 0]], [[64]])
    for match, given, facts, method in [
        ("language model", model, fact, METHOD),
        ("Expected a Fact", Language, ["Eiffel"], METHOD),
        ("does not state `linear_writes", cases.model("sandwich"), ids, METHOD),
        ("no weight", cases.model("attention_only"), ids, METHOD),
        ("layers 0 to 2, got layer 3", model, ids, ROME(3, Uncorrected())),
        ("another model or weight processing", model, ids, ROME(1, other)),
        ("singular: rank 24 of 64", model, ids, ROME(1, few)),
        ("layers \\[1\\], got layer 0", model, ids, ROME(0, few)),
        ("40 tokens and the model's context is 32", model, long, METHOD),
        ("no facts", model, ids[:0], METHOD),
        ("tokens 64 to 64, and the model 0 to 63", model, beyond, METHOD),
    ]:
        with pytest.raises(mijax.MijaxError, match=match) as error:
            rewrite(given, facts, method=method)
        assert "\n" not in str(error.value)
    with pytest.raises(mijax.MijaxError, match="ascending order"):
        MEMIT([1, 0], few)
    with pytest.raises(mijax.MijaxError, match="must be a"):
        rewrite(model, ids, method="rome")
    with pytest.raises(mijax.MijaxError, match="at least 1 step"):
        ValueSearch(steps=0)
    with pytest.raises(mijax.MijaxError, match=r"covariance looks at .*outside"):
        jax.jit(lambda t: covariance(model, t, layers=[1]).moments)(tokens)


def test_facts_in_words_are_rewritten():
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    wide = jnp.concatenate(
        [0.3 * jax.random.normal(jax.random.key(1), (203, 32)), model.embedding.weight]
    )
    Language.model = eqx.tree_at(lambda m: m.embedding.weight, model, wide)
    fact = Fact("{} is in", "Eiffel", "Rome Italy")
    found = rewrite(Language, fact, method=ROME(0, Uncorrected(), Contexts((("{}",),))))
    edited = found.edit.apply(Language.model)
    tokens = jnp.array([ID[w] for w in ("Eif", "fel", " is", " in", " Rome")])
    before, after = (
        jax.nn.log_softmax(mijax.run(m, tokens)) for m in (Language.model, edited)
    )

    def gain(p):
        return p[3, ID[" Rome"]] + p[4, ID[" Italy"]]

    assert gain(after) > gain(before) + 1


def test_covariance_repr():
    found = Covariance(np.eye(4, dtype=np.float32)[None], (17,), 9, ("",))
    assert repr(found) == "Covariance(layers 17; 9 tokens, width 4)"
