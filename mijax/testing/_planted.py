"""Small transformers built by hand, so that their circuits are known."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import LoadError, nearest
from mijax.nn import Transformer
from mijax.testing._draft import LETTERS, Draft

Edges = frozenset[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Planted:
    """A model whose circuit is known, and prompts that need it.

    The behaviour is `logits[answer] - logits[wrong]` at the last token. Edges are
    `(sender, receiver)`: senders `input`, `a0.h1`, `m0`; receivers `a0.h1<q>`, `m0`,
    `logits`. Everything that is not in the circuit is a distractor: it reads the
    whole stream with random weights and writes where only distractors read.

    Attributes:
        name: what the circuit is called.
        model: the transformer, without norms.
        clean: prompts that show the behaviour.
        corrupt: prompts of the same shape that do not.
        answer: the right token of each clean prompt.
        wrong: the token that it is compared with.
        edges: the circuit under zero ablation: all that the mechanism reads.
        differing: the circuit under corrupt activations: edges that carry a difference
            between the clean and the corrupt prompt which reaches the logits. What is
            the same in both, such as positions, has no part in it.
        traps: edges outside the circuit that matter one by one and not together:
            their senders cancel.
    """

    name: str
    model: Transformer
    clean: Int[Array, "batch seq"]
    corrupt: Int[Array, "batch seq"]
    answer: Int[Array, " batch"]
    wrong: Int[Array, " batch"]
    edges: Edges
    differing: Edges
    traps: Edges = frozenset()


def planted(name: str) -> Planted:
    """Builds a model with a known circuit.

    | name | blocks | the circuit |
    |---|---|---|
    | `copy` | 2, attention only | a head copies the first token |
    | `induction` | 2, attention only | a previous-token head, and an induction head |
    |  |  | that finds its keys |
    | `inhibition` | 3, attention only | at the second mention of a name a head writes |
    |  |  | which name it is, another moves that to the end, and there it stops the |
    |  |  | mover of names from attending to it (Wang et al. 2022, simplified) |
    | `conjunction` | 2 with MLPs | two heads fetch a bit each, an MLP is their AND |
    | `cancelling` | 1, attention only | `copy`, and two heads of opposite sign |

    Args:
        name: one of these.

    Returns:
        The model, its prompts and its edges.

    Raises:
        LoadError: there is no such model.

    Examples:
        >>> case = planted("induction")
        >>> ("a0.h0", "a1.h1<k>") in case.edges
        True
        >>> tokens, answer = case.clean[0], case.answer[0]
        >>> logits, _ = case.model(tokens)
        >>> bool(logits[-1].argmax() == answer)
        True
    """
    if name not in CASES:
        raise LoadError(f"There is no planted circuit {name!r}.{nearest(name, CASES)}")
    return CASES[name]()


def copy_first(
    draft: Draft,
    head: int,
    *,
    source: int = 0,
    value: np.ndarray | None = None,
    to: str = "out",
    sign: float = 1.0,
) -> None:
    """Makes a head of the first block copy the token at a position, to the logits."""
    here = np.zeros((draft.seq, 1))
    here[source] = 1
    draft.head(
        (0, head),
        q=draft.read(position=np.ones((draft.seq, 1))),
        k=draft.read(position=here),
        v=draft.read(token=np.eye(draft.vocab) if value is None else value),
        to=to,
        sign=sign,
    )


def copy() -> Planted:
    """A head that copies the first token, among distractors in two blocks."""
    draft = Draft(layers=2, heads=3, vocab=8, seq=5)
    copy_first(draft, 1)
    clean, corrupt = differ(8, 5, seed=1)
    return record(
        "copy",
        draft,
        (clean, corrupt, clean[:, 0], corrupt[:, 0]),
        edges=f"{reads('a0.h1')} a0.h1>logits",
        differing="input>a0.h1<v> a0.h1>logits",
    )


def cancelling() -> Planted:
    """As `copy`; two more heads add and subtract the second token."""
    draft = Draft(layers=1, heads=4, vocab=8, seq=4)
    copy_first(draft, 0)
    copy_first(draft, 1, source=1)
    copy_first(draft, 2, source=1, sign=-1.0)
    clean, corrupt = differ(8, 4, seed=2)
    return record(
        "cancelling",
        draft,
        (clean, corrupt, clean[:, 0], clean[:, 1]),
        edges=f"{reads('a0.h0')} a0.h0>logits",
        differing="input>a0.h0<v> a0.h0>logits",
        traps=f"{reads('a0.h1')} a0.h1>logits {reads('a0.h2')} a0.h2>logits",
    )


def induction() -> Planted:
    """`A B ... A` is followed by `B`: the keys of a1.h1 are what a0.h0 wrote."""
    draft = Draft(layers=2, heads=3, vocab=12, seq=6)
    tokens = np.eye(12)
    draft.head(
        (0, 0),
        q=draft.read(position=np.eye(6, k=-1)),  # of position i, the one-hot of i - 1
        k=draft.read(position=np.eye(6)),
        v=draft.read(token=tokens),
        to="note",
    )
    draft.head(
        (1, 1),
        q=draft.read(token=tokens),
        k=draft.read(note=tokens),
        v=draft.read(token=tokens),
        to="out",
    )
    clean, corrupt = differ(12, 6, seed=3)
    for prompts in (clean, corrupt):
        prompts[:, -1] = prompts[:, 1]
    content = "input>a0.h0<v> a0.h0>a1.h1<k> input>a1.h1<q> input>a1.h1<v> a1.h1>logits"
    return record(
        "induction",
        draft,
        (clean, corrupt, clean[:, 2], corrupt[:, 2]),
        edges=f"{reads('a0.h0')} {content}",
        differing=content,
    )


def inhibition() -> Planted:
    """Two names, one again, the end: the answer is the name that came once.

    In the corrupt prompt a third name stands there, so only one token differs.
    """
    names, vocab, seq = 6, 8, 5  # token 6 is the end, token 7 opens
    draft = Draft(layers=3, heads=2, vocab=vocab, seq=seq, size=vocab + seq)
    tokens, flags = np.eye(vocab), np.diag([1.0] * names + [0, 0])
    apart = lambda matrix: np.hstack([np.zeros((seq, vocab)), matrix])  # noqa: E731
    at = lambda position: np.eye(seq)[:, [position]]  # noqa: E731
    # The same token, and rather an earlier mention than this one.
    draft.head(
        (0, 0),
        q=draft.read(token=2 * tokens, position=apart(np.tri(seq, k=-1))),
        k=draft.read(token=tokens, position=apart(np.eye(seq))),
        v=draft.read(token=tokens),
        to="note",
    )
    draft.head(
        (1, 0),
        q=draft.read(position=at(seq - 1)),
        k=draft.read(position=at(seq - 2)),
        v=draft.read(note=tokens),
        to="memo",
    )
    # Weak enough that an average over all notes would not do.
    draft.head(
        (2, 1),
        q=draft.read(position=at(seq - 1) * flags.sum(0), memo=-0.3 * flags),
        k=draft.read(token=tokens),
        v=draft.read(token=tokens),
        to="out",
    )
    rng = np.random.default_rng(4)
    drawn = np.stack([rng.permutation(names)[:3] for _ in range(6)])
    once, twice = drawn[np.arange(6), [[0, 1] * 3, [1, 0] * 3]]
    clean, corrupt = (
        np.column_stack([np.full(6, 7), drawn[:, :2], third, np.full(6, 6)])
        for third in (twice, drawn[:, 2])
    )
    path = "a0.h0>a1.h0<v> a1.h0>a2.h1<q> a2.h1>logits"
    return record(
        "inhibition",
        draft,
        (clean, corrupt, once, twice),
        edges=f"{reads('a0.h0')} input>a1.h0<q> input>a1.h0<k> {reads('a2.h1')} {path}",
        # As a key, the third name is not inhibited.
        differing=f"input>a0.h0<q> input>a2.h1<k> {path}",
    )


def conjunction() -> Planted:
    """The answer is yes (token 4, not 5) if the prompt begins with 0 and then 2."""
    draft = Draft(layers=2, heads=3, vocab=8, seq=4, mlp=7)
    for head, source, token in ((0, 0, 0), (2, 1, 2)):
        bit = np.zeros((8, 8))
        bit[token, head] = 1
        copy_first(draft, head, source=source, value=bit, to="note")
    start, out = draft.spaces["note"].start, draft.spaces["out"].start
    # The first neuron is the AND; the others are distractors inside the circuit's MLP.
    draft.mlp["w_in"][0, :, 0] = 0
    draft.mlp["w_in"][0, [start, start + 2], 0] = 1
    draft.mlp["b_in"][0, 0] = -1
    draft.mlp["w_out"][0, 0] = 0
    draft.mlp["w_out"][0, 0, out + 4] = 1
    ends = (6, 7, 1, 3)
    clean = np.array([[0, 2, end, 6] for end in ends])
    corrupt = np.array([[1, 3, end, 6] for end in ends])
    path = "a0.h0>m0 a0.h2>m0 m0>logits"
    return record(
        "conjunction",
        draft,
        (clean, corrupt, np.full(4, 4), np.full(4, 5)),
        edges=f"{reads('a0.h0')} {reads('a0.h2')} {path}",
        differing=f"input>a0.h0<v> input>a0.h2<v> {path}",
    )


CASES: Mapping[str, Callable[[], Planted]] = {
    "copy": copy,
    "induction": induction,
    "inhibition": inhibition,
    "conjunction": conjunction,
    "cancelling": cancelling,
}


def reads(head: str) -> str:
    """The edges of the input to a head, in short."""
    return " ".join(f"input>{head}<{x}>" for x in LETTERS)


def record(
    name: str,
    draft: Draft,
    prompts: tuple[np.ndarray, ...],
    *,
    edges: str,
    differing: str,
    traps: str = "",
) -> Planted:
    """Builds the record; edges are `sender>receiver`, apart by blanks."""
    pairs = lambda text: frozenset(  # noqa: E731
        tuple(edge.split(">", 1)) for edge in text.split()
    )
    return Planted(
        name,
        draft.build(),
        *(jnp.asarray(array, jnp.int32) for array in prompts),
        edges=pairs(edges),
        differing=pairs(differing),
        traps=pairs(traps),
    )


def differ(vocab: int, seq: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Six pairs of prompts that differ everywhere; no token is twice in a prompt."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(vocab) for _ in range(6)])
    return drawn[:, :seq].copy(), drawn[:, -seq:].copy()
