"""Names of a DeepSeek-V3 in Hugging Face files."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mijax.io import Tensors
from mijax.models._family import Into, Rule, Table, same
from mijax.models._leaves import LAYER, NAMES, halves, rules, tied_head, turned

ATTENTION = f"{LAYER}self_attn."
MLP = f"{LAYER}mlp."
HEADS, SHARED, EXPERTS = (
    "blocks.attention.",
    "blocks.mlp.shared.",
    "blocks.mlp.experts.",
)
# What a file calls the matrices of a gated MLP.
GATED = {"w_gate": "gate_proj", "w_in": "up_proj", "w_out": "down_proj"}


def table(spec: Any) -> Table:
    """Names in Hugging Face files."""
    names = {
        leaf: name
        for leaf, name in NAMES.items()
        if not leaf.startswith(("blocks.attention", "blocks.mlp"))
    }
    return Table(
        rules=(*rules(spec, names), *attention_rules(spec), *mlp_rules(spec)),
        ignored=(r".*rotary_emb\.inv_freq",),
        same=tied_head(spec, NAMES),
    )


class MainTensors:
    """The tensors of a file without layers that predict the token after the next.

    Such layers come after the others, and join two streams by `eh_proj`.

    Args:
        tensors: the tensors of the file.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.read, self.path, self.files = tensors.read, tensors.path, tensors.files
        end = "eh_proj.weight"
        extra = [n.removesuffix(end) for n in tensors.shapes if n.endswith(f".{end}")]
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape
            for name, shape in tensors.shapes.items()
            if not name.startswith(tuple(extra))
        }


def attention_rules(spec: Any) -> list[Rule]:
    """Return the rules of attention; rotated features come first."""
    embed, heads, latent = spec.embed, spec.heads, spec.kv_latent
    key, value, rotated = spec.key_dim, spec.value_dim, spec.rotated
    order = halves if spec.interleaved else same

    def queries(x: np.ndarray) -> np.ndarray:
        each = x.reshape(heads, key + rotated, -1)
        each = np.concatenate([order(each[:, key:]), each[:, :key]], axis=1)
        return each.transpose(2, 0, 1)

    def split(first: bool) -> Callable[[np.ndarray], np.ndarray]:
        cut = slice(key) if first else slice(key, None)
        return lambda x: x.reshape(heads, -1, latent)[:, cut].transpose(2, 0, 1)

    def rule(name: str, shape: tuple[int, ...], into: Into) -> Rule:
        return Rule(
            f"{ATTENTION}{name}.weight",
            shape,
            {f"{HEADS}{leaf}": make for leaf, make in into.items()},
        )

    width, source = heads * (key + rotated), spec.q_latent or embed
    joined = {
        "w_kv_latent": lambda x: x[:latent].T,
        "w_k_rotated": lambda x: order(x[None, latent:])[0].T,
    }
    query = "q_b_proj" if spec.q_latent else "q_proj"
    found = [
        rule(query, (width, source), {"w_q_up": queries}),
        rule("kv_a_proj_with_mqa", (latent + rotated, embed), joined),
        rule("kv_a_layernorm", (latent,), {"kv_latent_norm.weight": same}),
        rule(
            "kv_b_proj",
            (heads * (key + value), latent),
            {"w_k_up": split(True), "w_v_up": split(False)},
        ),
        rule(
            "o_proj",
            (embed, heads * value),
            {"w_o": lambda x: x.T.reshape(heads, value, embed)},
        ),
    ]
    if spec.q_latent:
        found += [
            rule("q_a_proj", (spec.q_latent, embed), {"w_q_latent": turned}),
            rule("q_a_layernorm", (spec.q_latent,), {"q_latent_norm.weight": same}),
        ]
    return found


def mlp_rules(spec: Any) -> list[Rule]:
    """Return the rules of MLPs and experts, each of the layers that have it.

    The MLP next to the experts has the size of that in layers without experts, or less:
    the neurons that it lacks are 0.
    """
    embed, count, layers = spec.embed, spec.experts, spec.layers
    first, then = (0, spec.dense), (spec.dense, layers)
    if spec.dense == layers:
        return gated(spec, MLP, spec.mlp, first)
    found = gated(spec, MLP, spec.mlp, first) if spec.dense else []
    found += gated(spec, f"{MLP}shared_experts.", spec.shared * spec.expert_mlp, then)
    makes = {
        "w_gate": lambda x: x.transpose(2, 0, 1),
        "w_in": lambda x: x.transpose(2, 0, 1),
        "w_out": lambda x: x.swapaxes(1, 2),
    }
    for leaf, name in GATED.items():
        shape = (spec.expert_mlp, embed)
        found.append(
            Rule(
                f"{MLP}experts.{{expert}}.{name}.weight",
                shape[::-1] if leaf == "w_out" else shape,
                {f"{EXPERTS}{leaf}": makes[leaf]},
                count,
                span=then,
            )
        )
    for name, shape, leaf, make in (
        ("weight", (count, embed), "w_router", turned),
        ("e_score_correction_bias", (count,), "routing.correction", same),
    ):
        into = {f"{EXPERTS}{leaf}": make}
        found.append(Rule(f"{MLP}gate.{name}", shape, into, span=then))
    return found


def gated(spec: Any, prefix: str, size: int, span: tuple[int, int]) -> list[Rule]:
    """Return the rules of a gated MLP of `size` neurons in some layers."""

    def padded(axis: int) -> Callable[[np.ndarray], np.ndarray]:
        def make(x: np.ndarray) -> np.ndarray:
            pad = [(0, 0), (0, 0)]
            pad[axis] = (0, spec.width - size)
            return np.pad(x.T, pad)

        return make

    found = []
    for leaf, name in GATED.items():
        out = leaf == "w_out"
        shape = (spec.embed, size) if out else (size, spec.embed)
        into = {f"{SHARED}{leaf}": padded(0 if out else 1)}
        found.append(Rule(f"{prefix}{name}.weight", shape, into, span=span))
    return found
