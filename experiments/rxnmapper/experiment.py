"""The attention head that maps atoms in a language model of chemical reactions.

Paper: Schwaller, Hoover, Reymond, Strobelt and Laino 2021, "Extraction of organic
chemistry grammar from unsupervised learning of chemical reactions", Science Advances 7,
eabe4166: an ALBERT that was trained to fill in masked tokens of reactions, and nothing
else, has a head that maps each atom of the product to the reactant atom it comes from.

Claim: of the 96 heads, the published one (layer 10, head 5, counted from 0) has its
largest attention from a product atom, among reactant atoms, on the right one nearly
always. Layers of ALBERT share their weights: head 5 of other layers maps as many atoms,
and heads of other numbers map less than half of them. Heads are scored on reactions
whose mapping is known by construction. Ablation tells whether the model uses the head:
atoms of the product are masked one at a time, and each head is set to zero in one
compiled sweep; what is measured is the loss of the masked atom. As a control, the same
scores are computed with the right atoms permuted among the reactant atoms.

The model comes with the Python package `rxnmapper`, whose code is not used:

    pip install --no-deps rxnmapper==0.4.3

Command:
    mijax run rxnmapper

Runtime: see experiments/README.md.
"""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mijax.experiment
from mijax import models, viz
from mijax._errors import LoadError
from mijax.data import Prompts

from ._reactions import Reaction, drawn

# The published head, counted from 0.
LAYER, HEAD = 10, 5


class Config(mijax.experiment.Config):
    """Model, reactions and masked atoms."""

    weights: str = ""
    "Folder with the model; by default that of the installed package `rxnmapper`."
    reactions: int = 128
    "Reactions, of eight kinds."
    masked: int = 128
    "Atoms of products that are masked, one per prompt, for the ablations."
    seed: int = 0
    "Of the reactions and the masked atoms."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Run the experiment."""
    folder = Path(config.weights) if config.weights else installed()
    loaded = models.load(str(folder))
    lines = (folder / "vocab.txt").read_text("utf-8").split("\n")
    vocab = {word: i for i, word in enumerate(lines)}
    run.weights("rxnmapper", loaded.digest)
    run.seed("reactions", config.seed)
    found = drawn(config.reactions, seed=config.seed)
    # Places count from the first token of the text, prompts begin with [CLS].
    prompts = Prompts.from_ids([encoded(one, vocab) for one in found])
    with run.progress("attention") as progress:
        acts = mijax.capture(loaded.model, prompts, mijax.Site("pattern"))
        progress(1, 1)
    pattern = np.asarray(acts)  # [prompt, layer, query, head, key]
    right = scores(pattern, found)
    control = scores(pattern, found, permuted=np.random.default_rng(config.seed))
    order = np.argsort(-right.ravel(), kind="stable")
    names = [divmod(int(i), right.shape[1]) for i in order]
    run.number("best_head", names[0][1], note="in any layer")
    run.number("mapped", float(right[LAYER, HEAD]), note="atoms, published head")
    ahead = int((right > right[LAYER, HEAD]).sum())
    run.number("ahead", ahead, note="heads that map more atoms than the published one")
    others = np.delete(right, HEAD, axis=1)
    run.number("other_heads", float(others.max()), note="best head but head 5")
    run.number("permuted", float(control.max()), note="best head, permuted atoms")
    run.table(
        "heads",
        columns=["layer", "head", "atoms mapped"],
        rows=[[i, j, float(right[i, j])] for i, j in names[:8]],
    )
    ester = Reaction("ester", "CC(=O)O.CCO>>CC(=O)OCC", (), (), ())
    one = mijax.capture(
        loaded.model,
        encoded(ester, vocab),
        mijax.Site("pattern", layer=LAYER, head=HEAD),
    )
    run.number("first_atom", float(one[13, 1]), note=ester.smiles)
    run.figure(
        "heads",
        viz.heatmap(
            right,
            title="Product atoms whose reactant atom has most attention (fraction)",
            x="Head",
            y="Layer",
        ),
        caption="Fraction of product atoms that each head maps to the right atom.",
    )
    ablations(config, run, loaded.model, found, vocab)
    by_kind(run, pattern[:, LAYER, :, HEAD], found)


def installed() -> Path:
    """Return the folder of the model in the package, which is not imported."""
    found = importlib.util.find_spec("rxnmapper")
    places = (found.submodule_search_locations or []) if found else []
    for place in places:
        for folder in Path(place).glob("models/transformers/*"):
            return folder
    raise LoadError(
        "The model comes with the package rxnmapper: pip install --no-deps "
        "rxnmapper==0.4.3, or give --weights FOLDER."
    )


def encoded(reaction: Reaction, vocab: dict[str, int]) -> list[int]:
    """Return the ids of a reaction, with the tokens that are put around it."""
    return [vocab[t] for t in ("[CLS]", *reaction.tokens, "[SEP]")]


def scores(
    pattern: np.ndarray,
    reactions: list[Reaction],
    *,
    permuted: np.random.Generator | None = None,
) -> np.ndarray:
    """Return the fraction of product atoms that each head maps, `[layer, head]`."""
    hits, total = 0.0, 0
    for attention, one in zip(pattern, reactions, strict=True):
        atoms = np.array(one.reactants) + 1
        queries, sources = np.array(one.product) + 1, np.array(one.source) + 1
        if permuted is not None:
            order = dict(zip(atoms, permuted.permutation(atoms), strict=True))
            sources = np.array([order[i] for i in sources])
        # [layer, product atom, head, reactant atom]
        part = attention[:, queries][..., atoms]
        chosen = atoms[part.argmax(-1)]
        hits = hits + (chosen == sources[:, None]).sum(1)
        total += len(queries)
    return np.asarray(hits) / total


def ablations(
    config: Config,
    run: mijax.experiment.Run,
    model: mijax.core.AbstractModel,
    reactions: list[Reaction],
    vocab: dict[str, int],
) -> None:
    """Set each head to zero and measure the loss of masked atoms."""
    random = np.random.default_rng(config.seed)
    places = [(i, at) for i, one in enumerate(reactions) for at in one.product]
    chosen = random.permutation(len(places))[: config.masked]
    ids, labels, positions = [], [], []
    for number in chosen:
        i, at = places[number]
        row = encoded(reactions[i], vocab)
        labels.append(row[at + 1])
        row[at + 1] = vocab["[MASK]"]
        ids.append(row)
        positions.append(at + 1)
    prompts = Prompts.from_ids(ids)
    metric = mijax.cross_entropy(labels, position=jnp.array(positions))
    swept = mijax.sweep(
        model, prompts, mijax.Zero().at("z"), over=("layer", "head"), metric=metric
    )
    loss = metric(mijax.run(model, prompts))
    added = np.asarray(swept.values) - np.asarray(loss)[:, None, None]
    mean = added.mean(0)
    run.number("loss", float(loss.mean()), note="of masked atoms, nats")
    own = mijax.interval(jnp.asarray(added[:, LAYER, HEAD]))
    run.number("added", own, note="loss without the published head, nats")
    rank = int((mean > mean[LAYER, HEAD]).sum())
    run.number("costlier", rank, note="heads whose ablation adds more loss")
    run.number("median", float(np.median(mean)), note="added by a head, nats")
    run.figure(
        "ablations",
        viz.heatmap(
            mean,
            title="Loss of masked atoms added by ablating a head (nats)",
            x="Head",
            y="Layer",
        ),
        caption="Mean over masked atoms, each head set to zero.",
    )


def by_kind(
    run: mijax.experiment.Run, attention: np.ndarray, reactions: list[Reaction]
) -> None:
    """Report the best head for each kind of reaction."""
    rows = []
    for kind in dict.fromkeys(one.kind for one in reactions):
        own = [i for i, one in enumerate(reactions) if one.kind == kind]
        part = attention[own][:, None, :, None]
        mapped = scores(part, [reactions[i] for i in own])
        rows.append([kind, reactions[own[0]].smiles, len(own), float(mapped[0, 0])])
    run.table("kinds", columns=["kind", "example", "reactions", "mapped"], rows=rows)
