"""Reactions whose atom mapping is known, because they are built from labeled parts."""

import dataclasses
import itertools
import re

import numpy as np

# Brackets, two-letter elements, the arrow, ring numbers above 9, single characters.
TOKENS = re.compile(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.")


@dataclasses.dataclass(frozen=True)
class Reaction:
    """A reaction and its atom mapping.

    Attributes:
        kind: of the reaction.
        smiles: reactants, `>>`, product.
        source: index of the token of the reactant atom, for each product atom.
        product: index of the token of each product atom.
        reactants: indices of the tokens of all reactant atoms.
    """

    kind: str
    smiles: str
    source: tuple[int, ...]
    product: tuple[int, ...]
    reactants: tuple[int, ...]

    @property
    def tokens(self) -> list[str]:
        """Tokens of the text."""
        return TOKENS.findall(self.smiles)


Part = list[tuple[str, str | None]]


def chain(name: str, length: int, *, end: str = "") -> Part:
    """Return a chain of carbons, numbered away from the reacting end."""
    atoms: Part = [("C", f"{name}{i}") for i in range(length)]
    return [*([(end, f"{name}x")] if end else []), *atoms[::-1]]


def carbonyl(name: str) -> Part:
    """Return `C(=O)` after a chain."""
    return [("C", f"{name}c"), ("(", None), ("=", None), ("O", f"{name}o"), (")", None)]


def reactions(*, most: int = 5) -> list[Reaction]:
    """Build reactions of several kinds from chains of 2 to `most` carbons.

    Esters and amides from acids and from acyl chlorides, ethers, thioethers and amines
    from bromides, and ketones that are reduced. Two chains of one reaction differ in
    length or end, so that no two atoms are alike by symmetry.
    """
    found = []
    sizes = itertools.product(range(2, most + 1), range(2, most + 1))
    for (a, b), end in itertools.product(sizes, ("", "F")):
        if a == b and not end:
            continue
        one, two = chain("a", a, end=end), chain("b", b)[::-1]
        acid = [*one, *carbonyl("a")]
        for leaving, atom in itertools.product(("O", "Cl"), ("O", "N")):
            left = [*acid, (leaving, "leaving")]
            right = [*two[::-1], (atom, "joint")]
            kind = {"O": "ester", "N": "amide"}[atom]
            kind = f"{kind} from {'an acid' if leaving == 'O' else 'a chloride'}"
            product = [*acid, (atom, "joint"), *two]
            found.append(built(kind, [left, right], product))
        for atom, kind in (("O", "ether"), ("S", "thioether"), ("N", "amine")):
            left, right = [*one, ("Br", "leaving")], [*two[::-1], (atom, "joint")]
            product = [*one, (atom, "joint"), *two]
            found.append(built(kind, [left, right], product))
        alcohol = [*one, ("C", "ac"), ("(", None), ("O", "ao"), (")", None), *two]
        found.append(built("reduction", [[*acid, *two]], alcohol))
    return found


def built(kind: str, reactants: list[Part], product: Part) -> Reaction:
    """Join parts into a reaction, and read its mapping off the labels."""
    left: Part = []
    for i, part in enumerate(reactants):
        left += [*([(".", None)] if i else []), *part]
    whole = [*left, (">>", None), *product]
    where = {label: i for i, (_, label) in enumerate(left) if label}
    start = len(left) + 1
    atoms = [(i, label) for i, (_, label) in enumerate(product) if label]
    return Reaction(
        kind,
        "".join(token for token, _ in whole),
        source=tuple(where[label] for _, label in atoms),
        product=tuple(start + i for i, _ in atoms),
        reactants=tuple(where.values()),
    )


def drawn(count: int, *, seed: int) -> list[Reaction]:
    """Draw reactions without repetition, the same number of each kind or one fewer."""
    random = np.random.default_rng(seed)
    kinds: dict[str, list[Reaction]] = {}
    for one in reactions():
        kinds.setdefault(one.kind, []).append(one)
    for group in kinds.values():
        random.shuffle(group)  # pyright: ignore[reportArgumentType]
    turns = itertools.zip_longest(*kinds.values())
    order = [one for turn in turns for one in turn if one is not None]
    return order[:count]
