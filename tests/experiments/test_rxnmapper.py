"""Reactions have their mapping by construction, and the published head is found."""

import importlib
import importlib.util

import pytest

from mijax.experiment import execute, load


def made():
    package = load("rxnmapper").function.__module__
    return importlib.import_module(f"{package}._reactions").reactions(most=3)


def test_atoms_keep_their_element():
    found = made()
    assert len({one.kind for one in found}) == 8
    for one in found:
        tokens = one.tokens
        arrow = tokens.index(">>")
        assert [tokens[i] for i in one.source] == [tokens[i] for i in one.product]
        atoms = [i for i, t in enumerate(tokens) if t[0].isalpha()]
        assert sorted(one.reactants) == [i for i in atoms if i < arrow]
        assert sorted(one.product) == [i for i in atoms if i > arrow]
        assert len(set(one.source)) == len(one.source)


def test_mapping_by_hand():
    one = next(r for r in made() if r.smiles == "CCC(=O)O.CCCO>>CCC(=O)OCCC")
    # C C C ( = O ) O . C C C O >> C C C ( = O ) O C C C
    assert one.product == (14, 15, 16, 19, 21, 22, 23, 24)
    assert one.source == (0, 1, 2, 5, 12, 11, 10, 9)


@pytest.mark.skipif(
    importlib.util.find_spec("rxnmapper") is None,
    reason="needs the model of pip install --no-deps rxnmapper",
)
def test_the_published_head_is_found(tmp_path):
    result = execute("rxnmapper", {"reactions": 24, "masked": 8}, out=tmp_path / "run")
    verdicts = {v.name: v.verdict for v in result.verdicts}
    assert verdicts["best_head"] == "PASS"
    assert verdicts["first_atom"] == "PASS"
