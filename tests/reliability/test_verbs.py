"""Short form of the fuzz of public verbs."""

import warnings

import pytest
from reliability import fuzz_verbs


@pytest.mark.usefixtures("unchecked")
def test_malformed_arguments_end_in_a_documented_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fuzz_verbs.fuzz(60, seed=0, slow=False)
    assert not found["failures"]
    assert found["fair"] == 60


def test_failures_are_found():
    """An error from inside another library is a failure."""
    for call, text in (
        (lambda x: fuzz_verbs.jnp.zeros((2, 3)) @ x, "TypeError"),
        (lambda x: x.nothing, "AttributeError"),
        (lambda x: fuzz_verbs.np.reshape(x, (3, 3)), "ValueError"),
    ):
        verb = fuzz_verbs.Verb("bad", call, {"x": fuzz_verbs.jnp.ones(4)})
        assert text in str(fuzz_verbs.failure(verb, verb.given))
