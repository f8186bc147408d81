"""Networks with a planted path from tokens through features to a logit."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from mijax import dictionaries as d
from mijax import nn

LAYERS, EMBED, WIDTH, VOCAB, SEQ = 3, 64, 8, 12, 6
# The token whose logit the paths end at.
TARGET = 11


@dataclasses.dataclass(frozen=True)
class Planted:
    """A network and what its graph must be.

    Attributes:
        model: the network.
        transcoders: copies of its MLPs, so that features are neurons.
        tokens: the prompt.
        nodes: names of the nodes on a path to the logit.
        edges: pairs of names, source and target, on a path to the logit.
    """

    model: nn.Transformer
    transcoders: dict[int, d.Dictionary]
    tokens: tuple[int, ...]
    nodes: frozenset[str]
    edges: frozenset[tuple[str, str]]


def planted(seed: int) -> Planted:
    """Draw a network.

    Two paths lead to the logit. One starts at a token in the middle of the prompt: a
    neuron of layer 0 detects it, a head of layer 1 carries what the neuron writes to
    the last token, a neuron of layer 1 or 2 reads it there. The other starts at the
    last token: its neuron of layer 0 is read by a neuron of layer 1, and that one by a
    neuron of layer 2. All other neurons fire on tokens, too, and write where nothing
    reads. Directions are orthogonal and random, so that no axis means anything.
    """
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(EMBED, EMBED)))[0]
    fresh = iter(basis)
    words = np.stack([next(fresh) for _ in range(VOCAB)])
    tokens = random.permutation(VOCAB - 1)[:SEQ]
    start = int(random.integers(1, SEQ - 1))
    last = SEQ - 1
    neurons = [list(random.permutation(WIDTH)) for _ in range(LAYERS)]
    reads, writes = np.zeros((2, LAYERS, WIDTH, EMBED))

    def neuron(layer: int, read: np.ndarray) -> tuple[int, np.ndarray]:
        """Take a neuron that reads a direction; return it and what it writes."""
        at, out = int(neurons[layer].pop()), next(fresh)
        size = random.uniform(1.0, 2.0)
        reads[layer, at], writes[layer, at] = size * read, random.uniform(1, 2) * out
        return at, out

    # The path that a head carries.
    one, written = neuron(0, words[tokens[start]])
    moved = next(fresh)
    far = int(random.integers(1, LAYERS))
    two, first_end = neuron(far, moved)
    # The path at the last token.
    three, at_last = neuron(0, words[tokens[last]])
    four, between = neuron(1, at_last)
    five, second_end = neuron(2, between)
    # Neurons that fire and that nothing reads.
    for layer in range(LAYERS):
        for token in tokens[: len(neurons[layer]) - 1]:
            neuron(layer, words[token])
    value, output = np.zeros((2, LAYERS, EMBED, 1))
    value[1, :, 0], output[1, :, 0] = written, SEQ * moved
    unembed = np.zeros((VOCAB, EMBED))
    unembed[TARGET] = first_end + second_end
    names = {
        "one": f"f0.{one}@{start}",
        "two": f"f{far}.{two}@{last}",
        "three": f"f0.{three}@{last}",
        "four": f"f1.{four}@{last}",
        "five": f"f2.{five}@{last}",
        "start": f"token@{start}",
        "last": f"token@{last}",
        "end": f"logit{TARGET}",
    }
    path = (
        *(("start", "one"), ("one", "two"), ("two", "end")),
        *(("last", "three"), ("three", "four"), ("four", "five"), ("five", "end")),
    )
    return Planted(
        *_built(words, reads, writes, value, output, unembed),
        tokens=tuple(int(t) for t in tokens),
        nodes=frozenset(names.values()),
        edges=frozenset((names[a], names[b]) for a, b in path),
    )


def _built(
    words: np.ndarray,
    reads: np.ndarray,
    writes: np.ndarray,
    value: np.ndarray,
    output: np.ndarray,
    unembed: np.ndarray,
) -> tuple[nn.Transformer, dict[int, d.Dictionary]]:
    """Make the model and the copies of its MLPs."""
    array = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    none = nn.Identity()
    # Queries and keys of 0 attend to all tokens alike.
    zeros = jnp.zeros((LAYERS, EMBED, 1, 1))
    attention = nn.Attention(
        w_q=zeros,
        w_k=zeros,
        w_v=array(value[:, :, None]),
        w_o=array(output[:, None].swapaxes(2, 3)),
    )
    mlp = nn.MLP(array(reads.swapaxes(1, 2)), array(writes), None, None, nn.ReLU())
    model = nn.Transformer(
        embedding=nn.Embedding(array(words)),
        positions=None,
        blocks=nn.Block(none, attention, none, mlp),
        norm=none,
        unembedding=nn.Unembedding(array(unembed)),
        context=SEQ,
    )
    transcoders = {
        i: d.Dictionary(
            architecture=d.ReLU(),
            wiring=d.Transcoder(EMBED),
            weights=d.Weights(
                array(reads[i]), jnp.zeros(WIDTH), array(writes[i]), jnp.zeros(EMBED)
            ),
            extra=None,
            running=None,
            scale=jnp.float32(1),
        )
        for i in range(LAYERS)
    }
    return model, transcoders
