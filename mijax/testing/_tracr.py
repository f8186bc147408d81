"""Transformers compiled from programs: models whose algorithm is known exactly."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import LoadError, TokenError, nearest
from mijax.io import SafeTensors, read_json, replace_file, save_safetensors
from mijax.nn import (
    MLP,
    Attention,
    Block,
    Embedding,
    Identity,
    ReLU,
    Transformer,
    Unembedding,
)
from mijax.testing._tracr_compile import PROGRAMS, Assembled, compile_program

FOLDER = Path(__file__).parent / "compiled"
SHIPPED: Mapping[str, Callable[[Sequence[Any]], list[Any]]] = {
    "reverse": lambda values: list(reversed(values)),
    "xproportion": lambda values: [
        values[:n].count("x") / n for n in range(1, len(values) + 1)
    ],
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A transformer compiled from a program, and the program.

    It reads a beginning-of-sequence token and then the values of a sequence. Attention
    is not causal, there are no norms and no biases, and every direction of the residual
    stream is one value of one variable of the program.

    Attributes:
        name: the program's name.
        model: the transformer; its logits are one column per value that the program
            may return, or a single one holding the number that it returns.
        tokens: the value that each token stands for; the last two that are not in
            `vocab` are the beginning of a sequence and the padding.
        vocab: values of an input.
        outputs: the value that each logit stands for; `None` if the output is a number.
        labels: what each direction of the residual stream means, `"variable_1:value"`;
            the number tells variables of one name apart.
        max_seq_len: the most values that an input may have.
        program: the program on plain values; `None` in its result is undefined.
    """

    name: str
    model: Transformer
    tokens: tuple[Any, ...]
    vocab: tuple[Any, ...]
    outputs: tuple[Any, ...] | None
    labels: tuple[str, ...]
    max_seq_len: int
    program: Callable[[Sequence[Any]], list[Any]]

    def encode(self, values: Sequence[Any]) -> Int[Array, " seq"]:
        """Returns tokens of a sequence, the beginning-of-sequence token first.

        Raises:
            TokenError: a value is not in the vocabulary, or there are too many.
        """
        if len(values) > self.max_seq_len:
            raise TokenError(
                f"'{self.name}' was compiled for {self.max_seq_len} values, got "
                f"{len(values)}. Compile it with a larger max_seq_len."
            )
        for value in values:
            if value not in self.vocab:
                raise TokenError(
                    f"{value!r} is not a value of '{self.name}'. Its values are "
                    f"{', '.join(map(repr, self.vocab))}."
                )
        ids = [self.tokens.index(value) for value in (BOS, *values)]
        return jnp.array(ids, jnp.int32)

    def decode(self, logits: Float[Array, "seq out"]) -> list[Any]:
        """Returns what the logits say, without the beginning of the sequence."""
        rows = np.asarray(logits)[1:]
        if self.outputs is None:
            return [float(row[0]) for row in rows]
        return [self.outputs[int(row.argmax())] for row in rows]

    def inputs(self) -> Iterator[tuple[Any, ...]]:
        """Yields every input, the short ones first."""
        for length in range(1, self.max_seq_len + 1):
            yield from itertools.product(self.vocab, repeat=length)

    @property
    def edges(self) -> frozenset[tuple[str, str]]:
        """The edges that the weights allow to matter, as `(sender, receiver)`.

        Names are those of the circuit graph with a split input: senders `token`,
        `position`, `a0.h0`, `m0`; receivers `a0.h0<q>`, `m0`, `logits`. An edge is
        here if the sender writes to a direction of the residual stream that the
        receiver reads, and what the receiver does with it reaches the logits in the
        same sense. Only that part of a receiver counts that reaches them: the neurons
        and value dimensions that write what is read later; queries where there are
        keys to match, and the reverse.

        Removing every other edge leaves the logits as they are. The converse fails:
        an edge here can be idle because of what the numbers are, such as a query
        whose scores are the same for every key, or a default that no input needs.
        """
        return frozenset(used_edges(self.model))


BOS, PAD = "BOS", "compiler_pad"


def tracr(
    program: str | Any,
    *,
    vocab: Collection[Any] | None = None,
    max_seq_len: int | None = None,
) -> Compiled:
    """Compiles a program to a transformer that computes it exactly.

    `reverse` and `xproportion` (the fraction of tokens so far that are "x") come with
    the library, over the values of Conmy et al. 2023; everything else needs Tracr
    (`pip install "mijax[tracr]"`). Categorical outputs are exact; numbers are exact up
    to rounding where the program only averages, and to about 1e-3 where an MLP
    approximates a function of a number.

    Args:
        program: a name (`reverse xproportion length hist count sort_unique sort
            sort_freq pair_balance shuffle_dyck shift_by_one detect_ab
            count_less_freq`), or any RASP program, `tracr.rasp.rasp.SOp`.
        vocab: values of the inputs; a named program has its own.
        max_seq_len: the most values of an input; 5 by default.

    Returns:
        The model and its program.

    Raises:
        LoadError: there is no such program, or Tracr is needed and not installed, or
            it cannot compile the program.

    Source:
        Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for
        Interpretability", arXiv:2301.05062. The two shipped models are those of Conmy
        et al. 2023, arXiv:2304.14997, section 4.

    Examples:
        >>> reverse = tracr("reverse")
        >>> logits, _ = reverse.model(reverse.encode([1, 2, 3, 3]))
        >>> reverse.decode(logits), reverse.program([1, 2, 3, 3])
        ([3, 3, 2, 1], [3, 3, 2, 1])
        >>> ("m2", "a3.h0<q>") in reverse.edges
        True
    """
    if isinstance(program, str):
        if program not in PROGRAMS:
            hint = nearest(program, PROGRAMS)
            raise LoadError(f"There is no program {program!r}.{hint}")
        if program in SHIPPED and vocab is None and max_seq_len is None:
            return load_compiled(program)
    assembled = compile_program(program, vocab, max_seq_len or 5, bos=BOS, pad=PAD)
    return to_record(assembled)


def to_record(assembled: Assembled) -> Compiled:
    """Builds the record of arrays and names."""
    about = dict(assembled.about)
    special = (BOS, PAD)
    tokens = tuple(about["tokens"])
    outputs = about["outputs"]
    return Compiled(
        name=about["name"],
        model=build(assembled.arrays),
        tokens=tokens,
        vocab=tuple(value for value in tokens if value not in special),
        outputs=None if outputs is None else tuple(outputs),
        labels=tuple(about["labels"]),
        max_seq_len=about["max_seq_len"],
        program=assembled.program,
    )


def build(arrays: Mapping[str, np.ndarray]) -> Transformer:
    """Puts weights into a bidirectional transformer without norms and biases."""
    w = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    return Transformer(
        embedding=Embedding(w["embedding"]),
        positions=Embedding(w["positions"]),
        blocks=Block(
            norm_1=Identity(),
            attention=Attention(
                w_q=w["w_q"], w_k=w["w_k"], w_v=w["w_v"], w_o=w["w_o"], causal=False
            ),
            norm_2=Identity(),
            mlp=MLP(w["w_in"], w["w_out"], None, None, ReLU()),
        ),
        norm=Identity(),
        unembedding=Unembedding(w["unembedding"]),
        context=w["positions"].shape[0],
    )


def load_compiled(name: str, folder: Path = FOLDER) -> Compiled:
    """Reads a program that comes with the library."""
    file = SafeTensors(folder / f"{name}.safetensors")
    arrays = {key: file.read(key) for key in file.shapes}
    about = read_json(folder / f"{name}.json")
    return to_record(Assembled(arrays, about, SHIPPED[name]))


def save_compiled(assembled: Assembled, folder: Path = FOLDER) -> None:
    """Writes a compiled program, weights and names."""
    name = assembled.about["name"]
    save_safetensors(assembled.arrays, folder / f"{name}.safetensors")
    text = json.dumps(assembled.about) + "\n"
    replace_file(folder / f"{name}.json", lambda new: new.write_text(text))


def used_edges(model: Transformer) -> Iterator[tuple[str, str]]:
    """Walks back from the logits, keeping what is written and read later."""
    assert isinstance(model.blocks, Block)
    assert model.positions is not None
    assert model.unembedding is not None
    attention, mlp = model.blocks.attention, model.blocks.mlp
    assert isinstance(mlp, MLP)
    assert isinstance(attention, Attention)
    # For each direction of the stream, the receivers still to come that read it.
    readers = {"logits": touched(model.unembedding.weight, 0)}
    for layer in reversed(range(model.n_layers)):
        needed = union(readers)
        w_in, w_out = (np.asarray(w[layer]) for w in (mlp.w_in, mlp.w_out))
        units = touched(w_in, 0) & (w_out[:, needed] != 0).any(1)
        yield from edges_of(f"m{layer}", touched(w_out[units], 0), readers)
        readers[f"m{layer}"] = touched(w_in[:, units], 1)
        needed = union(readers)
        found = {}
        for head in range(attention.w_q.shape[2]):
            w_q, w_k, w_v = (
                np.asarray(w[layer, :, head])
                for w in (attention.w_q, attention.w_k, attention.w_v)
            )
            w_o, name = np.asarray(attention.w_o[layer, head]), f"a{layer}.h{head}"
            moved = touched(w_v, 0) & (w_o[:, needed] != 0).any(1)
            yield from edges_of(name, touched(w_o[moved], 0), readers)
            matched = touched(w_q, 0) & touched(w_k, 0) & moved.any()
            found[f"{name}<q>"] = touched(w_q[:, matched], 1)
            found[f"{name}<k>"] = touched(w_k[:, matched], 1)
            found[f"{name}<v>"] = touched(w_v[:, moved], 1)
        readers |= found
    yield from edges_of("token", touched(model.embedding.weight, 0), readers)
    yield from edges_of("position", touched(model.positions.weight, 0), readers)


def edges_of(
    sender: str, written: np.ndarray, readers: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, str]]:
    """The edges of a sender that writes to some directions."""
    for receiver, read in readers.items():
        if (written & read).any():
            yield sender, receiver


def touched(weight: Any, axis: int) -> np.ndarray:
    """Which rows or columns of a matrix are not zero throughout, `axis` summed over."""
    return np.asarray((np.asarray(weight) != 0).any(axis))


def union(readers: Mapping[str, np.ndarray]) -> np.ndarray:
    """The directions that anyone reads."""
    return np.logical_or.reduce(list(readers.values()))
