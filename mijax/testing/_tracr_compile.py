"""Programs of Tracr's library, and their compilation to arrays."""

import dataclasses
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mijax._errors import LoadError

# Name: the program, given Tracr's library, its language and the longest input; its
# values.
PROGRAMS: Mapping[str, tuple[Callable[[Any, Any, int], Any], Collection[Any]]] = {
    "reverse": (lambda lib, rasp, n: lib.make_reverse(rasp.tokens), (1, 2, 3)),
    "xproportion": (
        lambda lib, rasp, n: lib.make_frac_prevs(rasp.tokens == "x"),
        ("w", "x", "y", "z"),
    ),
    "length": (lambda lib, rasp, n: lib.make_length(), ("a", "b")),
    "hist": (lambda lib, rasp, n: lib.make_hist(), ("a", "b", "c")),
    "count": (lambda lib, rasp, n: lib.make_count(rasp.tokens, "a"), ("a", "b", "c")),
    "sort_unique": (
        lambda lib, rasp, n: lib.make_sort_unique(rasp.tokens, rasp.tokens),
        (1, 2, 3, 4, 5),
    ),
    "sort": (
        lambda lib, rasp, n: lib.make_sort(
            rasp.tokens, rasp.tokens, max_seq_len=n, min_key=1
        ),
        (1, 2, 3),
    ),
    "sort_freq": (lambda lib, rasp, n: lib.make_sort_freq(max_seq_len=n), (1, 2, 3)),
    "pair_balance": (
        lambda lib, rasp, n: lib.make_pair_balance(rasp.tokens, "(", ")"),
        ("(", ")", "a"),
    ),
    "shuffle_dyck": (
        lambda lib, rasp, n: lib.make_shuffle_dyck(pairs=["()", "{}"]),
        ("(", ")", "{", "}"),
    ),
    "shift_by_one": (
        lambda lib, rasp, n: lib.shift_by(1, rasp.tokens),
        ("a", "b", "c"),
    ),
    "detect_ab": (
        lambda lib, rasp, n: lib.detect_pattern(rasp.tokens, "ab"),
        ("a", "b", "c"),
    ),
    "count_less_freq": (
        lambda lib, rasp, n: lib.make_count_less_freq(n=2),
        ("a", "b", "c"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Assembled:
    """A compiled program as arrays.

    Attributes:
        arrays: its weights.
        about: name, tokens, outputs, labels and longest input, as JSON has them.
        program: the program on plain values.
    """

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    program: Callable[[Sequence[Any]], list[Any]]


def compile_program(
    program: str | Any,
    vocab: Collection[Any] | None,
    max_seq_len: int,
    *,
    bos: str,
    pad: str,
) -> Assembled:
    """Compiles a program.

    Args:
        program: a name of `PROGRAMS` or a RASP program.
        vocab: its values; a named program has its own.
        max_seq_len: the most values of an input.
        bos: the value that begins a sequence.
        pad: the value of padding, which no input has.

    Returns:
        Its weights and names.

    Raises:
        LoadError: Tracr is not installed, or it cannot compile the program.
    """
    try:
        compiling, lib, rasp = (
            importlib.import_module(f"tracr.{module}")
            for module in ("compiler.compiling", "compiler.lib", "rasp.rasp")
        )
    except ImportError as error:
        raise LoadError(
            f"Compiling needs Tracr ({error}): pip install 'mijax[tracr]'. Without it "
            "there are tracr('reverse') and tracr('xproportion')."
        ) from error
    name: str = getattr(program, "name", program)
    sop: Any = program
    if isinstance(program, str):
        make, values = PROGRAMS[program]
        vocab = values if vocab is None else vocab
        sop = make(lib, rasp, max_seq_len)
    if vocab is None:
        raise LoadError(f"Give the values of '{name}': vocab={{1, 2, 3}}.")
    try:
        compiled = compiling.compile_rasp_to_model(
            sop,
            vocab=set(vocab),
            max_seq_len=max_seq_len,
            compiler_bos=bos,
            compiler_pad=pad,
        )
    except (NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LoadError(f"Tracr cannot compile '{name}': {reason}") from error
    outputs = getattr(compiled.output_encoder, "encoding_map", None)
    about = {
        "name": name,
        "tokens": list(compiled.input_encoder.encoding_map),
        "outputs": None if outputs is None else list(outputs),
        "labels": list(compiled.residual_labels),
        "max_seq_len": max_seq_len,
    }
    evaluate = lambda values: list(sop(list(values)))  # noqa: E731
    return Assembled(weights(compiled), about, evaluate)


def weights(compiled: Any) -> dict[str, np.ndarray]:
    """Reads the weights of Tracr's model, all of whose biases are zero."""
    params, config = compiled.params, compiled.model_config
    heads, size = config.num_heads, config.key_size

    def each(part: str) -> np.ndarray:
        found = [
            params[f"transformer/layer_{layer}/{part}"]
            for layer in range(config.num_layers)
        ]
        assert not any(np.asarray(one["b"]).any() for one in found)
        return np.stack([np.asarray(one["w"], np.float32) for one in found])

    linear = each("attn/linear")
    names = {"w_q": "query", "w_k": "key", "w_v": "value"}
    read = {ours: each(f"attn/{theirs}") for ours, theirs in names.items()}
    layers, embed, _ = read["w_q"].shape
    return {
        "embedding": np.asarray(params["token_embed"]["embeddings"], np.float32),
        "positions": np.asarray(params["pos_embed"]["embeddings"], np.float32),
        **{k: w.reshape(layers, embed, heads, size) for k, w in read.items()},
        "w_o": linear.reshape(layers, heads, size, embed),
        "w_in": each("mlp/linear_1"),
        "w_out": each("mlp/linear_2"),
        "unembedding": unembedding(compiled, embed),
    }


def unembedding(compiled: Any, embed: int) -> np.ndarray:
    """Asks Tracr's model for the logits of every direction of its stream."""
    haiku = importlib.import_module("haiku")

    def read(x: Any) -> Any:
        return compiled.get_compiled_model().unembed(x, use_unembed_argmax=False)

    logits = haiku.transform(read).apply({}, jax.random.key(0), np.eye(embed))
    return np.asarray(logits, np.float32).reshape(embed, -1).T
