"""Dictionaries of all kinds, trained together on one stream of activations."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from mijax import dictionaries as d
from mijax import train
from mijax._errors import ConfigError, nearest

from ._activations import Sizes

PENALISED = {"ReLU": d.ReLU, "JumpReLU": d.JumpReLU, "Gated": d.Gated}
LARGEST = {"TopK": d.TopK, "BatchTopK": d.BatchTopK}


class Choice(NamedTuple):
    """One dictionary.

    Attributes:
        kind: its architecture.
        latents: how many.
        level: `k`, or the coefficient of the penalty.
    """

    kind: str
    latents: int
    level: float

    @property
    def name(self) -> str:
        """What its numbers are called after."""
        return f"{self.kind}_{self.latents}_{self.level:g}"

    @property
    def label(self) -> str:
        """What it is called in pictures."""
        sign = "k" if self.kind in LARGEST else "λ"
        return f"{self.kind} {self.latents:,}, {sign} {self.level:g}"

    @property
    def architecture(self) -> d.AbstractArchitecture:
        """How its latents are made sparse."""
        if self.kind in LARGEST:
            return LARGEST[self.kind](int(self.level))
        return PENALISED[self.kind](self.level)


def choices(config: Any) -> list[Choice]:
    """Lists the dictionaries of a config.

    Raises:
        ConfigError: an architecture that does not exist.
    """
    known = (*LARGEST, *PENALISED)
    for kind in config.architectures:
        if kind not in known:
            raise ConfigError(f"No architecture {kind!r}.{nearest(kind, known)}")
    return [
        Choice(kind, latents, level)
        for kind in config.architectures
        for latents in config.latents
        for level in (config.k if kind in LARGEST else config.sparsity)
    ]


def middle(found: list[Choice], kind: str) -> Choice:
    """Returns the one of a kind with most latents and a sparsity in the middle."""
    latents = max(choice.latents for choice in found)
    mine = [c for c in found if c.kind == kind and c.latents == latents]
    return mine[len(mine) // 2]


class Together(train.AbstractObjective):
    """Objectives of any kinds as one: every batch is read, or computed, once for all.

    Lanes of one program have to differ in numbers only; these share nothing but the
    batch. Each has its own optimiser, so they learn what they would learn alone.

    Attributes:
        parts: what is trained.
        names: of the parts, which their numbers are reported under (static).
    """

    parts: tuple[d.Training, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def key(self) -> PRNGKeyArray:
        """Returns the key of the first."""
        return self.parts[0].key()

    def start(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Draws the weights of each with its own key."""
        del key
        begun = [part.start(part.key()) for part in self.parts]
        return tuple(one for one, _ in begun), tuple(other for _, other in begun)

    def loss(
        self, params: Any, memory: Any, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Any]]:
        """Returns the sum of the losses."""
        losses, numbers, after = [], {}, []
        parts = zip(self.names, self.parts, params, memory, strict=True)
        for name, part, own, kept in parts:
            loss, (told, kept) = part.loss(own, kept, batch, step)  # noqa: PLW2901
            losses.append(loss)
            numbers |= {f"{name}/{what}": value for what, value in told.items()}
            after.append(kept)
        return sum(losses[1:], losses[0]), (numbers, tuple(after))

    def optimiser(self) -> optax.GradientTransformation:
        """Returns the optimisers side by side."""
        rules = [part.optimiser() for part in self.parts]

        def init(params: Any) -> Any:
            return tuple(r.init(p) for r, p in zip(rules, params, strict=True))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            given = zip(rules, updates, state, params, strict=True)
            found = [rule.update(u, s, p) for rule, u, s, p in given]
            return tuple(u for u, _ in found), tuple(s for _, s in found)

        return optax.GradientTransformation(init, update)

    def after(
        self, params: Any, optimiser: Any, memory: Any, batch: Any, step: train.Step
    ) -> tuple[Any, Any, Any]:
        """Lets each do what it does after an update."""
        given = zip(self.parts, params, optimiser, memory, strict=True)
        found = [
            part.after(own, moments, kept, batch, step)
            for part, own, moments, kept in given
        ]
        params, optimiser, memory = zip(*found, strict=True)
        return params, optimiser, memory

    def specs(self, tree: Any) -> Any:
        """Lays each out as it would be alone."""
        given = zip(self.parts, *tree, strict=True)
        params, memory = zip(*(part.specs(own) for part, *own in given), strict=True)
        return params, memory

    def dictionaries(self, state: train.State) -> list[d.Dictionary]:
        """Returns what was learned."""
        given = zip(self.parts, state.params, state.memory, strict=True)
        return [part.dictionary(*own) for part, *own in given]


def objective(found: list[Choice], config: Any, sizes: Sizes) -> Together:
    """Says how the dictionaries are trained.

    Args:
        found: which.
        config: of the experiment.
        sizes: what activations are multiplied by, and where the decoders' biases start.
    """
    embed, scale = sizes.centre.shape[0], float(sizes.scale)
    parts = tuple(
        d.Training(
            *(choice.architecture, d.SAE(embed)),
            latents=choice.latents,
            steps=config.steps,
            learning_rate=config.learning_rate,
            warmup=config.warmup,
            decay=config.decay,
            sparsity_warmup=config.warmup,
            betas=config.betas,
            clip=config.clip,
            unit_norm=True,
            dead_after=config.dead_after,
            centre=sizes.centre,
            scale=scale,
            dtype=config.precision,
            seed=config.seed,
        )
        for choice in found
    )
    return Together(parts, tuple(choice.name for choice in found))


def footprint(together: Together) -> int:
    """Counts the bytes of parameters and moments; nothing is allocated."""

    def begin() -> Any:
        params, memory = together.start(together.key())
        return params, memory, together.optimiser().init(params)

    leaves = jax.tree.leaves(jax.eval_shape(begin))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class Shown(train.AbstractSink):
    """Moves the bar of a stage.

    Args:
        progress: takes updates done and all.
    """

    def __init__(self, progress: Callable[[int, int], None]):
        self.progress = progress
        self.steps = 0

    def open(self, done: int, steps: int) -> None:
        """Shows what is done."""
        self.steps = steps
        self.progress(done, steps)

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Shows how far it is."""
        self.progress(step, self.steps)
