"""Estimates at sites, and exact patching of every place there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import mijax
import mijax.experiment
from mijax import nn
from mijax._errors import ConfigError, nearest
from mijax.attribution import (
    AbstractMethod,
    AtP,
    AtPStar,
    IntegratedGradients,
    attribute,
)
from mijax.core import Chunks, Patch, Site, capture, sweep
from mijax.data import Pairs
from mijax.nn import Transformer

from ._agreement import Effects

PER_HEAD = ("q", "k", "v", "z")


class Estimator(NamedTuple):
    """A method of attribution.

    Attributes:
        label: its name in tables.
        method: what computes it.
        signed: whether its scores have a sign.
    """

    label: str
    method: AbstractMethod
    signed: bool = True


def estimators(*, steps: int) -> dict[str, Estimator]:
    """Returns the methods by the names of their numbers.

    Args:
        steps: points on the path of integrated gradients.

    Returns:
        The methods. AtP* with both its repairs gives sizes without a sign.
    """
    return {
        "atp": Estimator("AtP", AtP()),
        "atp_qk_fix": Estimator("AtP, QK fix", AtPStar(grad_drop=False)),
        "atp_star": Estimator("AtP* (sizes)", AtPStar(), signed=False),
        "ig": Estimator("IG", IntegratedGradients(steps=steps)),
        "gim": Estimator("GIM", AtP(rule=nn.GIM())),
        "relp": Estimator("RelP", AtP(rule=nn.RelP())),
    }


def named(chosen: tuple[str, ...], *, steps: int) -> dict[str, Estimator]:
    """Returns the methods that were asked for."""
    known = estimators(steps=steps)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"There is no method {name!r}.{nearest(name, known)}")
    return {name: known[name] for name in chosen}


def compare_sites(
    model: Transformer,
    pairs: Pairs,
    sites: tuple[str, ...],
    places: Mapping[str, Any],
    *,
    methods: Mapping[str, Estimator],
    memory: int,
    run: mijax.experiment.Run,
) -> dict[str, dict[str, Effects]]:
    """Estimates effects at every place of some sites, and patches all of them.

    Args:
        model: the model.
        pairs: prompts and counterparts; corrupt activations go into clean runs.
        sites: names of sites.
        places: names of positions, and where they are in each prompt.
        methods: what estimates effects, by name.
        memory: bytes of working memory.
        run: where progress is shown.

    Returns:
        Effects by site and method.
    """
    exact = {}
    for site in sites:
        with run.progress(f"patch {site}") as progress:
            chunks = Chunks(memory=memory, resume=str(run.scratch / f"{site}.npz"))
            exact[site] = patched(model, pairs, site, places, chunks, progress)
    names = {site: names_of(site, exact[site].shape[1:], places) for site in sites}
    found: dict[str, dict[str, Effects]] = {site: {} for site in sites}
    for key, one in methods.items():
        with run.progress(f"estimate: {one.label}") as progress:
            scores = attribute(
                *(model, pairs.clean.tokens, pairs.corrupt.tokens),
                pairs.logit_difference(),
                {site: Site(site) for site in sites},
                method=one.method,
            )
            for site in sites:
                estimate = at_places(np.asarray(scores[site]), places)
                both = (flat(estimate), flat(exact[site]))
                found[site][key] = Effects(*both, names[site], one.signed)
            progress(1, 1)
    return found


def patched(
    model: Transformer,
    pairs: Pairs,
    site: str,
    places: Mapping[str, Any],
    chunks: Chunks,
    progress: Any,
) -> Float[np.ndarray, "prompt layer place *head"]:
    """Returns what the metric loses when one activation is the corrupt one."""
    corrupt = capture(model, pairs.corrupt.tokens, Site(site))
    over: dict[str, Any] = {"layer": None, "position": dict(places)}
    if site in PER_HEAD:
        over["head"] = None
    found = sweep(
        model,
        pairs.clean.tokens,
        Patch(corrupt).at(site),
        over=over,
        metric=pairs.logit_difference(),
        progress=progress,
        chunks=chunks,
    )
    values, base = np.asarray(found.values), np.asarray(found.base)
    return base.reshape(-1, *[1] * (values.ndim - 1)) - values


def at_places(
    scores: Float[np.ndarray, "prompt layer seq *head"], places: Mapping[str, Any]
) -> Float[np.ndarray, "prompt layer place *head"]:
    """Takes the places out of scores of every position."""
    n = len(scores)
    where = [np.broadcast_to(np.asarray(at), n) for at in places.values()]
    index = np.stack(where, 1).reshape(n, 1, -1, *[1] * (scores.ndim - 3))
    return np.take_along_axis(scores, index, axis=2)


def flat(values: Float[np.ndarray, "prompt ..."]) -> Float[np.ndarray, "prompt place"]:
    """Flattens all but prompts."""
    return values.reshape(len(values), -1)


def names_of(site: str, shape: tuple[int, ...], places: Mapping[str, Any]) -> list[str]:
    """Names every place, in the order of the flattened values."""
    letter = "a" if site in PER_HEAD else "l"
    layers, _, *heads = shape
    suffixes = [f".h{head}" for head in range(heads[0])] if heads else [""]
    return [
        f"{letter}{layer}{suffix} {place}"
        for layer in range(layers)
        for place in places
        for suffix in suffixes
    ]


def unchanged(
    model: Transformer,
    pairs: Pairs,
    places: Mapping[str, Any],
    effects: Mapping[str, Mapping[str, Effects]],
) -> tuple[int, float]:
    """Looks at places where both runs have the same activations in a prompt.

    Args:
        model: the model.
        pairs: prompts and counterparts.
        places: names of positions, and where they are in each prompt.
        effects: effects by site and method.

    Returns:
        How many there are, and the largest effect there, estimated or exact.
    """
    count, largest = 0, 0.0
    for site, methods in effects.items():
        both = (
            capture(model, p.tokens, Site(site)) for p in (pairs.clean, pairs.corrupt)
        )
        clean, corrupt = both
        same = at_places(np.asarray(jnp.all(clean == corrupt, axis=-1)), places)
        count += int(same.sum())
        for one in methods.values():
            for part in (one.estimate, one.exact):
                # Unlike max, it keeps a NaN.
                here = np.abs(part[flat(same)]).max(initial=0)
                largest = np.maximum(largest, here)
    return count, float(largest)
