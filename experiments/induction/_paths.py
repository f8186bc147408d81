"""How layer 0 makes induction: through the keys of layer 1, not its queries or values.

Heads of layer 0 are ablated, and only one input of the induction heads hears of it:
their keys, their queries or their values.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax import viz
from mijax.core import Interval, Patch, Site, capture, interval
from mijax.experiment import Run
from mijax.nn import Transformer

from ._heads import Head, Roles, at
from ._repeats import Repeats
from ._scores import attention_scores, blocks, split_losses, token_losses

INPUTS = {"k": "keys", "q": "queries", "v": "values"}
SITES = {name: Site(name) for name in ("pattern", "logits")}
EFFECTS = ("attention", "ICL")
BEFORE, OTHERS = "previous-token", "all others"


def ablate_paths(
    model: Transformer,
    prompts: Repeats,
    acts: Mapping[str, Array],
    *,
    roles: Roles,
    run: Run,
) -> None:
    """Measures the paths from every head of layer 0 into the induction heads.

    Reports the share of induction attention and of in-context learning (fresh minus
    copied loss) that is lost, also for all previous-token heads and all others.
    """
    heads = range(blocks(model).attention.heads)
    before = [head.head for head in roles.previous if head.layer == 0]
    senders = {str(Head(0, head)): [head] for head in heads}
    senders |= {BEFORE: before, OTHERS: [h for h in heads if h not in before]}
    clean = {name: np.asarray(acts[name]) for name in INPUTS}
    whole = effects(acts, prompts, roles)
    lost = np.zeros((len(prompts.tokens), len(senders), len(INPUTS), len(EFFECTS)))
    with run.progress("paths into the induction heads") as progress:
        for sender, which in enumerate(senders.values()):
            changed = ablated_inputs(model, prompts, np.asarray(acts["z"]), which)
            for at_input, name in enumerate(INPUTS):
                sources = clean | {name: mixed(clean[name], changed[name], roles)}
                # Patching a clean input changes nothing and keeps one program for all.
                edits = [
                    Patch(jnp.asarray(s)).at(n, layer=1) for n, s in sources.items()
                ]
                patched = capture(model, prompts.tokens, SITES, edits)
                drop = whole - effects(patched, prompts, roles)
                lost[:, sender, at_input] = drop / whole.mean(0)
            progress(sender + 1, len(senders))
    report(interval(jnp.asarray(lost, jnp.float32)), list(senders), run)


def ablated_inputs(
    model: Transformer,
    prompts: Repeats,
    z: Float[np.ndarray, "prompt layer seq heads head_dim"],
    heads: Sequence[int],
) -> dict[str, np.ndarray]:
    """Queries, keys and values as they are when heads of layer 0 write their mean."""
    source = z.copy()
    source[..., heads, :] = z.mean((0, 2), keepdims=True)[..., heads, :]
    edit = Patch(jnp.asarray(source)).at("z", layer=0)
    sites = {name: Site(name) for name in INPUTS}
    return jax.device_get(capture(model, prompts.tokens, sites, edit))


def mixed(clean: np.ndarray, changed: np.ndarray, roles: Roles) -> np.ndarray:
    """Takes the induction heads' rows from `changed` and all others from `clean`."""
    which = [head.head for head in roles.induction if head.layer == 1]
    source = clean.copy()
    source[..., which, :] = changed[..., which, :]
    return source


def effects(
    acts: Mapping[str, Array], prompts: Repeats, roles: Roles
) -> Float[np.ndarray, "prompt effect"]:
    """Attention of the best induction head, and in-context learning, per prompt."""
    scores = attention_scores(acts["pattern"], prompts)["prefix_matching"]
    best = roles.induction[0]
    copied, fresh = map(
        np.asarray, split_losses(token_losses(acts["logits"], prompts), prompts)
    )
    attention = np.asarray(scores)[:, best.layer, best.head]
    return np.stack([attention, fresh - copied], axis=1)


def report(lost: Interval, senders: list[str], run: Run) -> None:
    """Reports the table, the numbers and the picture."""
    cells = list(np.ndindex(len(EFFECTS), len(INPUTS)))
    rows = [
        [sender, *(at(lost, (row, name, effect)) for effect, name in cells)]
        for row, sender in enumerate(senders)
    ]
    spelled = list(INPUTS.values())
    columns = [f"{EFFECTS[effect]}, {spelled[name]}" for effect, name in cells]
    title = "Share lost when heads of layer 0 are ablated in one input"
    run.table(title, ["ablated", *columns], rows)
    for effect, name in cells:
        cell = at(lost, (senders.index(BEFORE), name, effect))
        run.number(f"{EFFECTS[effect].lower()}_lost_{spelled[name]}", cell)
    for effect, spelling in enumerate(EFFECTS):
        cell = at(lost, (senders.index(OTHERS), 0, effect))
        note = "all other heads, through the keys"
        run.number(f"{spelling.lower()}_lost_control", cell, note=note)
    mean = np.asarray(lost.mean)
    figure = viz.heatmaps(
        {f"{effect} lost": mean[..., i] for i, effect in enumerate(EFFECTS)},
        x_labels=spelled,
        y_labels=senders,
        title="Heads of layer 0 ablated in one input of the induction heads",
        y="Ablated",
        label="Fraction lost",
    )
    caption = "The previous-token heads matter, and they do through the keys."
    run.figure("paths", figure, caption=caption)
