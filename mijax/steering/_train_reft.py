"""Training of representation finetuning with `mijax.train.fit`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax import train
from mijax._errors import ConfigError
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import ModelLike, PromptsLike, checked
from mijax.data import Prompts
from mijax.steering._answers import Answers
from mijax.steering._read import as_prompts, check_site
from mijax.steering._reft_kinds import AbstractReft

ANSWER = "answer"


class _Objective(train.AbstractObjective):
    """Cross-entropy of answer tokens under the edit, plus the method's penalty."""

    model: AbstractModel
    kind: AbstractReft
    layer: Int[Array, ""]
    seed: Int[Array, ""]
    site: str = eqx.field(static=True)
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    ends: tuple[int, int] | None = eqx.field(static=True)

    def key(self) -> PRNGKeyArray:
        """Return the key made from the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[Any, None]:
        """Return the parameters before training."""
        return self.kind.start(key, self.width), None

    def loss(
        self, params: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], None]]:
        """Return the mean loss over answer tokens plus the penalty."""
        progress = step.index / self.steps
        strengths, penalty = self.kind.strengths(params, batch, progress)
        tokens, lengths, begin, _ = batch

        def one(strength: Any, tokens: Array, begin: Array) -> Array:
            edit = self.kind.edit(params, strength)
            placed = _placed(edit, self.site, self.layer, begin, self.ends)
            logits = self.model(tokens, placed)[0]
            return jax.nn.log_softmax(logits.astype(jnp.float32))

        log_p = jax.vmap(one)(strengths, tokens, begin)[:, :-1]
        label, position = tokens[:, 1:, None], jnp.arange(1, tokens.shape[1])
        loss = -jnp.take_along_axis(log_p, label, axis=-1)[..., 0]
        counts = (position >= begin[:, None]) & (position < lengths[:, None])
        mean = (loss * counts).sum() / jnp.maximum(counts.sum(), 1)
        total = step.mean(mean + penalty)
        return total, ({"answer": step.mean(mean)}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Return the method's optimizer."""
        return self.kind.optimizer(self.steps)


def _placed(edit: Any, site: str, layer: Any, begin: Any, ends: Any) -> list[Any]:
    """Place an edit at every token, or at both ends of the text before the answer."""
    if ends is None:
        return [edit.at(site, layer=layer)]
    first, last = ends
    first = jnp.minimum(first, begin)
    spans = [slice(0, first), slice(jnp.maximum(begin - last, first), begin)]
    return [edit.at(site, layer=layer, position=span) for span in spans]


class Trained(eqx.Module):
    """A trained edit with its layer and site.

    Attributes:
        edit: the edit; for ReFT-r1 a `ReFTr1`, which both detects and steers.
        layer: index of the block.
        site: name of the site.
        ends: number of first and last tokens before the answer to edit; `None` for
            every token.
        losses: loss of each step, penalties included.
    """

    edit: Any
    layer: int = eqx.field(static=True)
    site: str = eqx.field(static=True)
    ends: tuple[int, int] | None = eqx.field(static=True)
    losses: Float[np.ndarray, " step"]

    def edits(self, prompts: Any = None) -> list[Any]:
        """Return the placed edits for prompts without their answers.

        Args:
            prompts: the prompts; required if only their ends are edited.

        Returns:
            Placed edits, for `run` and `generate`.
        """
        if self.ends is None:
            return [self.edit.at(self.site, layer=self.layer)]
        if not isinstance(prompts, PromptsLike):
            raise ConfigError(
                f"This edit applies at the ends {self.ends} of a prompt: pass the "
                "prompts."
            )
        begin = jnp.asarray(prompts.lengths, jnp.int32)
        return _placed(self.edit, self.site, self.layer, begin, self.ends)


@checked
def train_reft(
    model: ModelLike,
    kind: AbstractReft,
    prompts: Prompts,
    *,
    layer: int,
    steps: int,
    site: str = "resid_post",
    batch: int = 6,
    ends: tuple[int, int] | None = None,
    seed: int = 0,
) -> Trained:
    """Train a small edit at one layer to produce given answers.

    `mijax.train.fit` trains only the edit; the loss is the cross-entropy of the answer
    tokens.

    Args:
        model: a decoder, or a language model.
        kind: method, with its hyperparameters.
        prompts: texts with the span `"answer"`, which ends at the end of each text.
        layer: index of the block.
        steps: number of updates.
        site: site of the block.
        batch: number of texts per update.
        ends: number of first and last tokens before the answer to edit, such as
            pyreft's `"f7+l7"`; every token, including the answer, by default.
        seed: seed for the parameters and the order.

    Returns:
        The trained edit.

    Raises:
        PositionError: prompts without the span `"answer"`.
        ConfigError: a batch larger than the number of texts, or less than one step.
        SiteError: a site or layer that the model does not have.
        TrainingError: a loss that is not finite.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> texts = [[5, 6, 7], [8, 9, 7]]
        >>> prompts = Prompts.from_ids(texts, spans={"answer": [(2, 3), (2, 3)]})
        >>> kind = mijax.steering.TrainLoReFT(rank=2, learning_rate=0.05)
        >>> made = train_reft(model, kind, prompts, layer=1, steps=20, batch=2)
        >>> bool(made.losses[-1] < made.losses[0])
        True
    """
    check_site(site)
    bare, prompts = as_prompts(model, prompts)
    begin = prompts.find(ANSWER)[0]
    if not 1 <= batch <= len(prompts):
        raise ConfigError(
            f"batch must be 1 to {len(prompts)}, the number of texts, got {batch}."
        )
    place = Site(site, layer=layer)
    # Read without the edit, which leaves earlier activations unchanged.
    acts = jnp.asarray(capture(bare, prompts, place)).astype(jnp.float32)
    width = acts.shape[-1]
    kept = acts if kind.needs_activations else None
    parts = (prompts.tokens, prompts.lengths, jnp.asarray(begin, jnp.int32), kept)
    source = Answers(*parts, size=batch, seed=seed)
    at, seed_array = jnp.int32(layer), jnp.int32(seed)
    objective = _Objective(bare, kind, at, seed_array, site, width, steps, ends)
    told = train.Memory()
    state = train.fit(
        objective, source, steps=steps, sinks=[told], report=1, progress=False
    )
    losses = np.array([row["loss"] for row in told.rows])
    made = kind.made(state.params, source, place)
    return Trained(made, layer, site, ends, losses)
