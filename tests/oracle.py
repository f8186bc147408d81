"""A circuit run with loops: every receiver sums the senders that it sees."""

import numpy as np


def edges_of(model, *, split=False):
    """Every edge, as (sender, receiver)."""
    seen, edges = ["token", "position"] if split else ["input"], []
    for layer in range(model.n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads(model))]
        edges += [(s, f"{h}<{x}>") for s in seen for h in heads for x in "qkv"]
        seen += heads
        if hasattr(model.blocks, "mlp"):
            edges += [(s, f"m{layer}") for s in seen]
            seen.append(f"m{layer}")
    return frozenset(edges + [(s, "logits") for s in seen])


def circuit(model, tokens, edges, reference=None, *, split=False):
    """Logits and what every sender writes when receivers see only `edges`.

    What a receiver does not see of a sender it sees as in `reference`, or as zero.
    The input is one sender or, split, two. No norms.
    """
    tokens = np.asarray(tokens)
    token = np.asarray(model.embedding.weight, np.float64)[tokens]
    position = np.asarray(model.positions.weight, np.float64)[: len(tokens)]
    sent = {"input": token + position}
    if split:
        sent = {"token": token, "position": position}
    zero = np.zeros_like(token)

    def seen(receiver):
        parts = [
            value
            if (sender, receiver) in edges
            else (zero if reference is None else reference[sender])
            for sender, value in sent.items()
        ]
        return np.sum(parts, axis=0)

    att = model.blocks.attention
    for layer in range(model.n_layers):
        out = {}
        for head in range(n_heads(model)):
            name = f"a{layer}.h{head}"
            w_q, w_k, w_v = (
                np.asarray(w, np.float64)[layer, :, head]
                for w in (att.w_q, att.w_k, att.w_v)
            )
            q, k, v = (
                seen(f"{name}<{x}>") @ w
                for x, w in zip("qkv", (w_q, w_k, w_v), strict=True)
            )
            scores = q @ k.T / np.sqrt(k.shape[1])
            if att.causal:
                scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            out[name] = pattern @ v @ np.asarray(att.w_o, np.float64)[layer, head]
        sent |= out
        if hasattr(model.blocks, "mlp"):
            mlp = model.blocks.mlp
            w_in, w_out = (
                np.asarray(w, np.float64)[layer] for w in (mlp.w_in, mlp.w_out)
            )
            pre = seen(f"m{layer}") @ w_in
            if mlp.b_in is not None:
                pre = pre + np.asarray(mlp.b_in, np.float64)[layer]
            sent[f"m{layer}"] = np.maximum(pre, 0) @ w_out
    head = np.asarray(model.unembedding.weight, np.float64)
    return seen("logits") @ head.T, sent


def n_heads(model):
    return model.blocks.attention.w_q.shape[2]
