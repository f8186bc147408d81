"""The tuned lens: one affine map per layer, trained to predict the model's output."""

import abc
import hashlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.core import AbstractModel
from mijax.lens._lens import AbstractLens, check_fit
from mijax.lens._reading import ending
from mijax.nn.internal import readout_of
from mijax.train import AbstractObjective, Step, warmed


class TunedLens(AbstractLens):
    r"""The tuned lens: $\ell_i = W_U\,\mathrm{LN}(r_i + A_i r_i + b_i)$.

    $r_i$ is the input of block $i$, so layer 0 is the embedding; the output of the last
    block has no map (Belrose et al. 2023, arXiv:2303.08112). The maps are residual, so
    weight decay pulls them toward the identity. `TunedLensTraining` trains one, and
    `load_tuned_lens` loads published ones.

    Attributes:
        weight: $A_i$, `[layer, embed out, embed in]`.
        bias: $b_i$, `[layer, embed]`, or `None`.

    Examples:
        >>> import jax.numpy as jnp
        >>> lens = TunedLens(jnp.zeros((3, 4, 4)), jnp.ones((3, 4)))
        >>> lens(jnp.zeros((1, 3, 2, 4))).sum().item()
        24.0
    """

    weight: Float[Array, "*lane layer embed embed"]
    bias: Float[Array, "*lane layer embed"] | None = None

    @property
    def site(self) -> str:
        """Site that the lens reads: the input of every block."""
        return "resid_pre"

    @property
    def rows(self) -> int:
        """Number of layers."""
        return self.weight.shape[0]

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Raise if the lens does not fit the model's size."""
        check_fit("tuned lens", (self.rows, self.weight.shape[-1]), layers, embed)

    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Map the stream of every layer."""
        step = jnp.einsum("plte,lfe->pltf", x, self.weight)
        if self.bias is not None:
            step = step + self.bias[:, None]
        return x + step


class AbstractLensLoss(eqx.Module):
    """Loss of a lens at one position, from its logits and the model's."""

    @abc.abstractmethod
    def __call__(
        self,
        log_q: Float[Array, "*batch seq vocab"],
        log_p: Float[Array, "*batch seq vocab"],
        tokens: Int[Array, "*batch seq"],
    ) -> Float[Array, "*batch seq"]:
        """Return the loss at every position, in nats.

        Args:
            log_q: log probabilities of the lens.
            log_p: log probabilities of the model.
            tokens: token ids.
        """

    @property
    @abc.abstractmethod
    def shift(self) -> int:
        """Number of positions without a loss at the end of a prompt."""


class FinalKL(AbstractLensLoss):
    r"""$\mathrm{KL}(p \,\|\, q) = \sum_v p_v (\log p_v - \log q_v)$.

    $p$ is the model's output at the same position.

    Examples:
        >>> FinalKL().shift
        0
    """

    @property
    def shift(self) -> int:
        """Every position has a loss."""
        return 0

    def __call__(
        self,
        log_q: Float[Array, "*batch seq vocab"],
        log_p: Float[Array, "*batch seq vocab"],
        tokens: Int[Array, "*batch seq"],
    ) -> Float[Array, "*batch seq"]:
        """Return the divergence at every position."""
        return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


class NextTokenLoss(AbstractLensLoss):
    r"""$-\log q_{x_{t+1}}$, the cross-entropy of the next token.

    Examples:
        >>> NextTokenLoss().shift
        1
    """

    @property
    def shift(self) -> int:
        """Nothing follows the last position."""
        return 1

    def __call__(
        self,
        log_q: Float[Array, "*batch seq vocab"],
        log_p: Float[Array, "*batch seq vocab"],
        tokens: Int[Array, "*batch seq"],
    ) -> Float[Array, "*batch seq"]:
        """Return the cross-entropy, 0 at the last position."""
        target = jnp.roll(tokens, -1, axis=-1)[..., None]
        picked = jnp.take_along_axis(log_q, target, axis=-1)[..., 0]
        return -picked.at[..., -1].set(0.0)


class TunedLensTraining(AbstractObjective):
    r"""Objective for `mijax.train.fit` that trains all layers of a tuned lens at once.

    Layers share the forward pass and the optimizer, but not parameters: the loss is the
    sum over layers of the mean loss over tokens. Defaults match `tuned-lens` 0.2.0: SGD
    with Nesterov momentum, a learning rate of `scale * (1 - momentum)` that decays
    linearly to 0, weight decay, and the global gradient norm clipped at 1. Only one
    layer's logits are in memory at a time.

    Attributes:
        model: the model; it is not trained.
        steps: number of updates (static).
        loss_of: `FinalKL()` or `NextTokenLoss()`.
        scale: factor for the learning rate.
        momentum: momentum of SGD (static).
        weight_decay: pull of the maps toward the identity (static).
        clip: largest global gradient norm (static).
        bias: true if the maps have a bias (static).
        seed: seed of the run; training starts at the identity.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> corpus = mijax.data.Corpus.from_ids([list(range(1, 41))])
        >>> source = mijax.data.Tokens(corpus, batch=2, seq=8)
        >>> training = TunedLensTraining(model, steps=3)
        >>> lens = mijax.train.fit(training, source, steps=3).params
        >>> mijax.lens.read(model, [5, 6, 7], lens, top=1).tokens.shape
        (3, 3, 1)
    """

    model: AbstractModel
    steps: int = eqx.field(static=True)
    loss_of: AbstractLensLoss = FinalKL()
    scale: Any = 1.0
    momentum: float = eqx.field(static=True, default=0.9)
    weight_decay: float = eqx.field(static=True, default=1e-3)
    clip: float = eqx.field(static=True, default=1.0)
    bias: bool = eqx.field(static=True, default=True)
    seed: Any = 0

    def __check_init__(self):
        """Raise if the model or the settings cannot be trained."""
        if not isinstance(self.model, AbstractModel):
            raise ShapeError(
                "A tuned lens is trained on a decoder such as mijax.models.load(...)"
                f".model, got {type(self.model).__name__}."
            )
        if self.steps < 1 or not 0 <= self.momentum < 1:
            raise ConfigError(
                "Training needs 1 step or more and a momentum in [0, 1), got "
                f"{self.steps} and {self.momentum}."
            )

    def key(self) -> PRNGKeyArray:
        """Return the key made from the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[TunedLens, tuple[()]]:
        """Return the identity lens."""
        tokens = jax.ShapeDtypeStruct((1,), jnp.int32)
        width = eqx.filter_eval_shape(self.model.embed, tokens, tokens).shape[-1]
        layers = self.model.n_layers
        bias = jnp.zeros((layers, width)) if self.bias else None
        return TunedLens(jnp.zeros((layers, width, width)), bias), ()

    def loss(
        self, params: TunedLens, memory: Any, batch: Any, step: Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, "..."]], Any]]:
        """Return the sum over layers of the mean loss, and the loss of each layer."""
        tokens = jnp.asarray(batch.tokens)
        last = jnp.asarray(batch.lengths)[:, None] - self.loss_of.shift
        mask = jnp.arange(tokens.shape[1]) < last
        streams, log_p = jax.lax.stop_gradient(_targets(self.model, tokens, batch))
        count = jnp.maximum(step.total(mask.sum()), 1)
        end = ending(self.model)

        @jax.checkpoint
        def of_layer(inputs: Any) -> Float[Array, ""]:
            lens, x = inputs
            found = jax.nn.log_softmax(_wide(end(lens(x[:, None])[:, 0])), axis=-1)
            each = self.loss_of(found, log_p, tokens)
            return step.total(jnp.where(mask, each, 0.0).sum()) / count

        alone = jax.tree.map(lambda a: a[:, None], step.local(params))
        losses = jax.lax.map(of_layer, (alone, streams))
        return losses.sum(), ({"layers": losses}, memory)

    def optimiser(self) -> optax.GradientTransformation:
        """Return SGD with Nesterov momentum and its schedule."""
        peak = jnp.asarray(self.scale) * (1 - self.momentum)
        rate = warmed(peak, steps=self.steps, decay=self.steps)
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.add_decayed_weights(self.weight_decay),
            optax.trace(decay=self.momentum, nesterov=True),
            optax.scale_by_learning_rate(rate),
        )


def unembedding_hash(model: AbstractModel) -> str:
    """Return the hash that `tuned-lens` uses to identify an unembedding.

    It is the SHA-256 of the matrix as NumPy prints it in float32, with one digit.

    Args:
        model: a model that states its `readout`.

    Raises:
        FrameError: a model without a `readout`.

    Examples:
        >>> import jax, mijax
        >>> len(unembedding_hash(mijax.testing.tiny_gpt2(jax.random.key(0))))
        64
    """
    weight = readout_of(model, "unembedding_hash", linear=False).head.weight
    text = np.array_str(np.asarray(weight, np.float32), precision=1)
    return hashlib.sha256(text.encode()).hexdigest()


def _targets(
    model: AbstractModel, tokens: Int[Array, "batch seq"], batch: Any
) -> tuple[Float[Array, "layer batch seq embed"], Float[Array, "batch seq vocab"]]:
    """Return the input of every block, and the model's log probabilities."""

    def one(tokens: Array, length: Array) -> Any:
        options = {} if model.causal else {"length": length}
        logits, acts = model(tokens, **options)
        return acts.blocks.resid_pre, jax.nn.log_softmax(_wide(logits), axis=-1)

    return jax.vmap(one, out_axes=(1, 0))(tokens, jnp.asarray(batch.lengths))


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
