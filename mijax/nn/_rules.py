"""Backward rules: other gradients for the same forward pass, by substitution."""

import abc
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx

from mijax._errors import ConfigError
from mijax.core import AbstractModel
from mijax.nn._basic import (
    GELU,
    LayerNorm,
    Product,
    ReLU,
    RMSNorm,
    SiLU,
    SinkSoftmax,
    Softmax,
)
from mijax.nn._mlp import AbstractMLP
from mijax.nn._substitutes import (
    AbstractSubstitute,
    FrozenNorm,
    FrozenSoftmax,
    HalfProduct,
    Secant,
    SoftmaxAt,
)

Classes = tuple[type, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Coverage:
    """What backward rules replaced.

    Attributes:
        counts: for each rule, by name, how many modules of each class it replaced; a
            stacked module counts once per layer. Empty where the model has none.

    Examples:
        >>> import jax, mijax
        >>> apply(mijax.testing.tiny_gpt2(jax.random.key(0)), GIM()).coverage
        FrozenNorms      7 LayerNorm
        TemperedSoftmax  3 Softmax
        HalfProducts     3 Product
    """

    counts: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """Number of modules replaced."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def __getitem__(self, rule: str) -> Mapping[str, int]:
        return self.counts[rule]

    def __str__(self) -> str:
        """Returns one line per rule."""
        width = max(map(len, self.counts), default=0)
        lines = []
        for name, classes in self.counts.items():
            parts = [f"{n} {kind}" for kind, n in classes.items()]
            lines.append(f"{name:<{width}}  {', '.join(parts) or '0'}")
        return "\n".join(lines)

    __repr__ = __str__


class Ruled(NamedTuple):
    """A model with backward rules.

    Attributes:
        model: computes what the plain model computes, bit for bit; gradients of its
            activations follow the rules.
        coverage: what was replaced.
    """

    model: AbstractModel
    coverage: Coverage


class AbstractRule(eqx.Module):
    """A backward rule: a frozen value, and a function from model to model.

    `rule(model)` is the model with the rule; `apply(model, rule)` also says what was
    replaced. To write one's own out of others, subclass it and define `parts`.
    """

    @property
    @abc.abstractmethod
    def parts(self) -> "tuple[AbstractPart, ...]":
        """Rules for one kind of module each, whose sum this rule is."""

    def __call__(self, model: AbstractModel) -> AbstractModel:
        """Applies the rule.

        Raises:
            ConfigError: it matches nothing in the model, or one was applied before.
        """
        return apply(model, self).model


class AbstractPart(AbstractRule):
    """A rule for one kind of module.

    Attributes:
        replaces: classes that it replaces.
        inside: only within modules of these classes; everywhere by default.
    """

    replaces: ClassVar[Classes]
    inside: ClassVar[Classes] = ()

    @abc.abstractmethod
    def substitute(self, node: Any) -> AbstractSubstitute:
        """Returns what stands in for a module."""

    def check(self, model: AbstractModel) -> None:
        """Refuses a model of which the rule would miss a part."""

    @property
    def parts(self) -> "tuple[AbstractPart, ...]":
        """The rule itself."""
        return (self,)


class FrozenNorms(AbstractPart):
    r"""Freezes the scale of every LayerNorm and RMSNorm.

    $y = (x - \bar x) / \mathrm{sg}(\sigma) \cdot \gamma + \beta$, where sg stops the
    gradient; the mean is differentiated (Ali et al. 2022, "XAI for Transformers",
    the LN-rule).

    Examples:
        >>> import jax, mijax
        >>> ruled = FrozenNorms()(mijax.testing.tiny_gpt2(jax.random.key(0)))
        >>> type(ruled.norm).__name__
        'FrozenNorm'
    """

    replaces = (LayerNorm, RMSNorm)

    def substitute(self, node: Any) -> FrozenNorm:
        """Freezes a norm."""
        return FrozenNorm(node)


class TemperedSoftmax(AbstractPart):
    r"""Takes the gradient of every attention softmax at another temperature.

    With $p_T = \mathrm{softmax}(s / T)$ and the gradient $g$ at the pattern, the
    gradient at the scores is $p_T \odot (g - \langle g, p_T \rangle)$; there is no
    factor $1/T$. A saturated softmax so keeps a gradient (Edin et al. 2025, GIM,
    arXiv:2505.17630).

    Attributes:
        temperature: `T`; 1 is the true gradient.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    temperature: float = eqx.field(static=True, default=2.0)
    replaces = (Softmax, SinkSoftmax)

    def __check_init__(self):
        """Refuses temperatures that are not positive."""
        if not self.temperature > 0:
            raise ConfigError(f"A temperature is positive, got {self.temperature}.")

    def substitute(self, node: Any) -> SoftmaxAt:
        """Tempers a softmax."""
        return SoftmaxAt(node, self.temperature)


class FrozenPattern(AbstractPart):
    """Stops the gradient at every attention pattern: queries and keys get none.

    The AH-rule of Ali et al. 2022, "XAI for Transformers".
    """

    replaces = (Softmax, SinkSoftmax)

    def substitute(self, node: Any) -> FrozenSoftmax:
        """Freezes a softmax."""
        return FrozenSoftmax(node)


class HalfProducts(AbstractPart):
    """Hands half of the gradient to each factor of every product of activations.

    Products are queries with keys, pattern with values, and gate with up projection.
    In attention queries and keys so get a quarter and values a half (Achtibat et al.
    2024, the uniform rule, arXiv:2402.05602; Edin et al. 2025, arXiv:2505.17630).
    """

    replaces = (Product,)

    def substitute(self, node: Any) -> HalfProduct:
        """Halves a product's gradients."""
        return HalfProduct(node)


class HalfGates(AbstractPart):
    """`HalfProducts` in gated MLPs only: the half-rule of Jafari et al. 2025."""

    replaces = (Product,)
    inside = (AbstractMLP,)

    def substitute(self, node: Any) -> HalfProduct:
        """Halves a product's gradients."""
        return HalfProduct(node)


class SecantActivation(AbstractPart):
    r"""Differentiates every activation $f$ as the line through 0 and $(x, f(x))$.

    The slope is $f(x) / x$, and $f'(0)$ at 0: the identity rule of layer-wise
    relevance propagation (Achtibat et al. 2024, arXiv:2402.05602).
    """

    replaces = (GELU, SiLU, ReLU)

    def check(self, model: AbstractModel) -> None:
        """Refuses MLPs whose activation is none of those it replaces."""
        from penzai import pz  # noqa: PLC0415

        for mlp in pz.select(model).at_instances_of(AbstractMLP).get_sequence():
            activation = getattr(mlp, "activation", None)
            known = (*self.replaces, AbstractSubstitute, type(None))
            if not isinstance(activation, known):
                name = getattr(activation, "__name__", type(activation).__name__)
                raise ConfigError(
                    f"SecantActivation does not know the activation {name!r} of "
                    f"{type(mlp).__name__}; use one of "
                    f"{', '.join(f'nn.{c.__name__}()' for c in self.replaces)}."
                )

    def substitute(self, node: Any) -> Secant:
        """Linearises an activation."""
        return Secant(node)


class GIM(AbstractRule):
    """Gradient Interaction Modifications (Edin et al. 2025, arXiv:2505.17630).

    `FrozenNorms`, `TemperedSoftmax` and `HalfProducts`. Activations keep their true
    derivative, and a plain MLP its gradient. The published numbers are for models with
    norms folded, writing weights centred and value biases folded (see `fold_norm`).

    Attributes:
        temperature: of the softmax gradient.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> apply(model, GIM()).coverage
        FrozenNorms      7 RMSNorm
        TemperedSoftmax  3 Softmax
        HalfProducts     6 Product
    """

    temperature: float = eqx.field(static=True, default=2.0)

    @property
    def parts(self) -> tuple[AbstractPart, ...]:
        """Norms, softmax, products."""
        return (FrozenNorms(), TemperedSoftmax(self.temperature), HalfProducts())


class RelP(AbstractRule):
    """Relevance patching (Jafari et al. 2025, arXiv:2508.21258).

    `FrozenNorms` (LN-rule), `SecantActivation` (identity rule) and `HalfGates`
    (half-rule), which is what the authors' code applies where nothing else is said,
    its IOI study included. The AH-rule, which they list too, is an option.

    Attributes:
        freeze_pattern: also stop the gradient at attention patterns (AH-rule).

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> apply(model, RelP()).coverage
        FrozenNorms       7 LayerNorm
        SecantActivation  3 GELU
        HalfGates         0
    """

    freeze_pattern: bool = eqx.field(static=True, default=False)

    @property
    def parts(self) -> tuple[AbstractPart, ...]:
        """Norms, activations, gates, and patterns if asked for."""
        parts = (FrozenNorms(), SecantActivation(), HalfGates())
        return (*parts, FrozenPattern()) if self.freeze_pattern else parts


class AttnLRP(AbstractRule):
    """Layer-wise relevance propagation (Achtibat et al. 2024, arXiv:2402.05602).

    `FrozenNorms`, `SecantActivation` and `HalfProducts`, in the gradient-times-input
    form of the authors' code; a softmax keeps its true gradient.
    """

    @property
    def parts(self) -> tuple[AbstractPart, ...]:
        """Norms, activations, products."""
        return (FrozenNorms(), SecantActivation(), HalfProducts())


def apply(model: AbstractModel, *rules: AbstractRule) -> Ruled:
    """Applies backward rules to a model by replacing modules.

    Outputs do not change, bit for bit; gradients of activations do. Process weights
    first: a norm that was replaced can no longer be folded.

    Args:
        model: a plain model, without rules.
        *rules: for instance `GIM()`, or `FrozenNorms(), HalfGates()`.

    Returns:
        The model, and what each rule replaced. A rule of several parts may find
        nothing for some of them (a plain MLP has no gate): these are listed with 0.

    Raises:
        ConfigError: no rule; one that matches nothing; modules that already have one;
            an MLP with an activation that the rules do not know.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> apply(model, FrozenPattern()).coverage["FrozenPattern"]
        {'Softmax': 2}
    """
    if not rules:
        raise ConfigError("Give at least one rule, for instance nn.GIM().")
    counts: dict[str, dict[str, int]] = {}
    for rule in rules:
        found = 0
        for part in rule.parts:
            model, classes = replaced(model, part)
            counts[type(part).__name__] = classes
            found += sum(classes.values())
        if not found:
            looked = {c.__name__: None for part in rule.parts for c in part.replaces}
            raise ConfigError(
                f"{type(rule).__name__} matches nothing in this "
                f"{type(model).__name__}: it replaces {', '.join(looked)}"
                f"{within(rule)}, and there are none."
            )
    return Ruled(model, Coverage(counts))


def replaced(
    model: AbstractModel, part: AbstractPart
) -> tuple[AbstractModel, dict[str, int]]:
    """Applies one part of a rule, and counts by class what it replaced."""
    from penzai import pz  # noqa: PLC0415

    part.check(model)
    for old in pz.select(model).at_instances_of(AbstractSubstitute).get_sequence():
        if isinstance(old.inner, part.replaces):
            raise ConfigError(
                f"{type(part).__name__} replaces {type(old.inner).__name__}, but here "
                f"that is {type(old).__name__} already: apply rules to the plain model."
            )
    counts: Counter[str] = Counter()
    for tree, times in ((model, 1), (model.blocks, model.n_layers - 1)):
        for node in selected(tree, part).get_sequence():
            counts[type(node).__name__] += times
    return selected(model, part).apply(part.substitute), dict(counts)


def selected(tree: Any, part: AbstractPart) -> Any:
    """Selects what a rule replaces."""
    from penzai import pz  # noqa: PLC0415

    selection = pz.select(tree)
    if part.inside:
        selection = selection.at_instances_of(part.inside)
    return selection.at_instances_of(part.replaces)


def within(rule: AbstractRule) -> str:
    """Says inside which classes a rule looks, if not everywhere."""
    inside = {c.__name__: None for part in rule.parts for c in part.inside}
    return f" inside {', '.join(inside)}" if inside else ""
