"""Weights written by hand, over a stream whose directions have names."""

import jax.numpy as jnp
import numpy as np

from mijax.nn import (
    MLP,
    Attention,
    AttentionBlock,
    Block,
    Embedding,
    Identity,
    ReLU,
    Transformer,
    Unembedding,
)

SHARP = 40.0  # difference of scores, so large that attention is one-hot in float32
JUNK = 6  # directions that only distractors read
LETTERS = "qkv"


class Draft:
    """Weights of a transformer under construction.

    The residual stream is a sum of spaces: `token` and `position` (one-hot, from the
    input), `note` and `memo` (what heads tell each other, one direction per token),
    `out` (what the logits read) and `junk`.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        vocab: int,
        seq: int,
        mlp: int = 0,
        size: int | None = None,
    ) -> None:
        sizes = {"token": vocab, "position": seq, "note": vocab, "memo": vocab}
        sizes |= {"out": vocab, "junk": JUNK}
        ends = np.cumsum(list(sizes.values()))
        self.spaces = {
            name: slice(int(end) - size, int(end))
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        }
        self.embed, self.vocab, self.seq = int(ends[-1]), vocab, seq
        self.size = size or max(vocab, seq)
        rng = np.random.default_rng(0)
        shape = (layers, self.embed, heads, self.size)
        # All are distractors until a part of the circuit takes their place.
        self.w = {f"w_{x}": rng.normal(0, 0.3, shape) for x in LETTERS}
        self.w["w_o"] = np.zeros((layers, heads, self.size, self.embed))
        self.w["w_o"][..., self.spaces["junk"]] = rng.normal(
            0, 0.3, (layers, heads, self.size, JUNK)
        )
        self.mlp = {
            "w_in": rng.normal(0, 0.3, (layers, self.embed, mlp)),
            "w_out": np.zeros((layers, mlp, self.embed)),
            "b_in": rng.normal(0, 0.3, (layers, mlp)),
        }
        self.mlp["w_out"][..., self.spaces["junk"]] = rng.normal(
            0, 0.3, (layers, mlp, JUNK)
        )

    def read(self, **parts: np.ndarray) -> np.ndarray:
        """A matrix `[embed, size]` that reads spaces, each by a matrix of its own."""
        weight = np.zeros((self.embed, self.size))
        for space, matrix in parts.items():
            weight[self.spaces[space], : matrix.shape[1]] = matrix
        return weight

    def head(
        self,
        at: tuple[int, int],
        *,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        to: str,
        sign: float = 1.0,
    ) -> None:
        """Makes the head `at` (layer, head) a part of the circuit.

        Queries are scaled so that a product of ones is a score of `SHARP`.
        """
        layer, head = at
        self.w["w_q"][layer, :, head] = SHARP * self.size**0.5 * q
        self.w["w_k"][layer, :, head] = k
        self.w["w_v"][layer, :, head] = v
        self.w["w_o"][layer, head] = 0
        self.w["w_o"][layer, head, : self.vocab, self.spaces[to]] = sign * np.eye(
            self.vocab
        )

    def build(self) -> Transformer:
        """Returns the model."""
        embedding = np.zeros((self.vocab, self.embed))
        embedding[:, self.spaces["token"]] = np.eye(self.vocab)
        positions = np.zeros((self.seq, self.embed))
        positions[:, self.spaces["position"]] = np.eye(self.seq)
        unembedding = np.zeros((self.vocab, self.embed))
        unembedding[:, self.spaces["out"]] = 5 * np.eye(self.vocab)
        q, k, v, o = (jnp.asarray(self.w[f"w_{x}"], jnp.float32) for x in "qkvo")
        attention = Attention(w_q=q, w_k=k, w_v=v, w_o=o)
        blocks = AttentionBlock(Identity(), attention)
        if self.mlp["b_in"].size:
            w = {k: jnp.asarray(a, jnp.float32) for k, a in self.mlp.items()}
            mlp = MLP(w["w_in"], w["w_out"], w["b_in"], None, ReLU())
            blocks = Block(Identity(), attention, Identity(), mlp)
        return Transformer(
            embedding=Embedding(jnp.asarray(embedding, jnp.float32)),
            positions=Embedding(jnp.asarray(positions, jnp.float32)),
            blocks=blocks,
            norm=Identity(),
            unembedding=Unembedding(jnp.asarray(unembedding, jnp.float32)),
            context=self.seq,
        )
