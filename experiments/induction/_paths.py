"""How layer 0 makes induction: through the keys of layer 1, not its queries or values.

Heads of layer 0 are ablated, and only one input of the induction heads hears of it:
their keys, their queries or their values.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax import viz
from mijax.core import Interval, Patch, Site, capture, interval
from mijax.experiment import Run
from mijax.nn import Transformer

from ._heads import Head, Roles
from ._repeats import Repeats
from ._scores import blocks, split_losses, token_losses

INPUTS = {"k": "keys", "q": "queries", "v": "values"}
Lost = Mapping[str, Mapping[str, Mapping[str, Interval]]]


def ablate_paths(
    model: Transformer, prompts: Repeats, *, roles: Roles, run: Run
) -> None:
    """Measures the paths from every head of layer 0 into the induction heads.

    Reports the share of induction attention and of in-context learning (fresh minus
    copied loss) that is lost, also for all previous-token heads and all others.
    """
    heads = blocks(model).attention.w_q.shape[-2]
    before = [head.head for head in roles.previous if head.layer == 0]
    others = [head for head in range(heads) if head not in before]
    senders = {str(Head(0, head)): [head] for head in range(heads)}
    senders |= {"previous-token heads": before, "all other heads": others}
    acts = capture(model, prompts.tokens, {n: Site(n) for n in ("z", *INPUTS)})
    clean = effects(model, prompts, roles, None)
    lost: dict[str, dict[str, dict[str, Interval]]] = {n: {} for n in clean}
    with run.progress("paths into the induction heads") as progress:
        for done, (sender, which) in enumerate(senders.items()):
            changed = ablated_inputs(model, prompts, acts, which)
            for name in INPUTS:
                source = mixed(acts[name], changed[name], roles)
                patch = Patch(source).at(name, layer=1)
                for effect, values in effects(model, prompts, roles, patch).items():
                    drop = (clean[effect] - values) / clean[effect].mean()
                    lost[effect].setdefault(sender, {})[name] = interval(drop)
            progress(done + 1, len(senders))
    report(lost, run)


def ablated_inputs(
    model: Transformer, prompts: Repeats, acts: Mapping[str, Array], heads: list[int]
) -> dict[str, Array]:
    """Queries, keys and values as they are when heads of layer 0 write their mean."""
    z = acts["z"]
    mean = z.mean((0, 2), keepdims=True)
    which = jnp.isin(jnp.arange(z.shape[-2]), jnp.asarray(heads, jnp.int32))
    edit = Patch(jnp.where(which[:, None], mean, z)).at("z", layer=0)
    return capture(model, prompts.tokens, {n: Site(n) for n in INPUTS}, edit)


def mixed(clean: Array, changed: Array, roles: Roles) -> Array:
    """Takes the induction heads' rows from `changed` and all others from `clean`."""
    which = np.zeros(clean.shape[-2], bool)
    which[[head.head for head in roles.induction if head.layer == 1]] = True
    return jnp.where(jnp.asarray(which)[:, None], changed, clean)


def effects(
    model: Transformer, prompts: Repeats, roles: Roles, edits: Any
) -> dict[str, Float[Array, " prompt"]]:
    """Attention of the best induction head, and in-context learning, per prompt."""
    best = roles.induction[0]
    sites = {
        "pattern": Site("pattern", layer=best.layer, head=best.head),
        "logits": Site("logits"),
    }
    acts = capture(model, prompts.tokens, sites, edits)
    keys = jnp.take_along_axis(acts["pattern"], prompts.target[..., None], axis=-1)
    inside = prompts.inside
    attention = (keys[..., 0] * inside).sum(1) / inside.sum(1)
    copied, fresh = split_losses(token_losses(acts["logits"], prompts), prompts)
    return {"induction attention": attention, "in-context learning": fresh - copied}


def report(lost: Lost, run: Run) -> None:
    """Reports the table, the numbers and the picture."""
    attention, learning = lost.values()
    rows = [
        [sender, *attention[sender].values(), *learning[sender].values()]
        for sender in attention
    ]
    columns = [
        f"{effect} lost through {name}"
        for effect in ("attention", "ICL")
        for name in INPUTS.values()
    ]
    run.table("Share lost when heads of layer 0 are ablated", ["head", *columns], rows)
    before = attention["previous-token heads"], learning["previous-token heads"]
    for name, spelled in INPUTS.items():
        run.number(f"attention_lost_{spelled}", before[0][name])
        run.number(f"icl_lost_{spelled}", before[1][name])
    run.number("attention_lost_control", attention["all other heads"]["k"])
    run.number("icl_lost_control", learning["all other heads"]["k"])
    panels = {
        f"{effect} lost": np.array(
            [[float(cell.mean) for cell in by.values()] for by in of.values()]
        )
        for effect, of in lost.items()
    }
    figure = viz.heatmaps(
        panels,
        x_labels=list(INPUTS.values()),
        y_labels=list(attention),
        title="Heads of layer 0 ablated in one input of the induction heads",
        x="input that hears of it",
        y="ablated",
        label="share lost",
    )
    caption = "Only the previous-token heads matter, and only through the keys."
    run.figure("paths", figure, caption=caption)
