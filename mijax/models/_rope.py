"""Rotary frequencies, and reading them from the keys of transformers 4 or 5."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mijax._errors import LoadError
from mijax.io import Positive, Size, read_record

Kinds = Mapping[str, Mapping[str, str]]


def frequencies(theta: float, rotated: int) -> Float[np.ndarray, " half"]:
    """Return the radians per position of each pair of `rotated` features."""
    return theta ** -(np.arange(0, rotated, 2) / rotated)


def stretched(
    frequency: Float[np.ndarray, " half"],
    *,
    factor: float,
    low: float,
    high: float,
    context: int,
) -> Float[np.ndarray, " half"]:
    """Stretch long wavelengths (Llama 3.1).

    Those beyond `context / low` are stretched by the factor, those below
    `context / high` are kept, with a ramp between.
    """
    turns = context * frequency / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - keep) * frequency / factor + keep * frequency


def yarn(
    theta: float,
    rotated: int,
    *,
    factor: float,
    context: int,
    fast: float,
    slow: float,
    truncate: bool = True,
) -> Float[np.ndarray, " half"]:
    """Stretch frequencies by the number of turns in a context (YaRN).

    Pairs that turn less than `slow` times are stretched by the factor, those that turn
    more than `fast` times are kept, with a ramp over the index of the pair between
    (Peng et al. 2023, arXiv:2309.00071). `truncate` makes the ends of the ramp whole.
    """

    def pair(turns: float) -> float:
        return rotated * math.log(context / (turns * 2 * math.pi)) / 2 / math.log(theta)

    first, last = pair(fast), pair(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    low, high = max(first, 0), min(last, rotated - 1)
    width = high - low or 0.001
    stretch = np.clip((np.arange(rotated // 2) - low) / width, 0, 1)
    frequency = frequencies(theta, rotated)
    return frequency * (stretch / factor + 1 - stretch)


def yarn_gain(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's factor of rotated queries and keys, which grows with the log."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Keys of `rope_scaling` or `rope_parameters`."""

    rope_theta: Positive | None = None
    rope_type: str | None = None
    type: str | None = None
    partial_rotary_factor: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    attention_factor: Positive | None = None
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    truncate: bool | None = None
    original_max_position_embeddings: Size | None = None


# Types of layers.
TYPES = ("full_attention", "sliding_attention")
# What a config may say about a rotation without scaling its frequencies.
BASICS = ("rope_theta", "rope_type", "type", "partial_rotary_factor")


def read_rope(
    config: Any,
    path: str,
    kinds: Kinds,
    *,
    theta: float = 10000.0,
    partial: bool = False,
) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling`, or `rope_parameters`.

    Args:
        config: the keys of a config that has these three.
        path: the file, named by errors.
        kinds: the kinds of scaling that the family has, and the spec field of each of
            their parameters, all of which have to be there.
        theta: base of the frequencies where the config gives none.
        partial: whether the family may rotate a part of the features of a head.

    Returns:
        Values of spec fields.

    Raises:
        LoadError: values that contradict each other, or a scaling that is not there.
    """
    both = read_both(config, path, partial=partial)
    thetas = [*(one.rope_theta for one in both), config.rope_theta]
    spec = {"rope_theta": float(agreed(thetas, "rope_theta", path) or theta)}
    ropes = []
    for one in both:
        # Configs of 2024 spell the kind twice.
        kind = agreed([one.rope_type, one.type], "rope_type/type", path)
        found = {"kind": kind} | {
            name: value
            for name, value in dataclasses.asdict(one).items()
            if name not in BASICS
        }
        ropes.append({k: v for k, v in found.items() if v is not None})
    rope = agreed(ropes, "rope_parameters and rope_scaling", path) or {}
    kind = rope.pop("kind", None)
    if kind in (None, "default") and not rope:
        return spec
    fields = kinds.get(kind or "missing")
    if fields is None or rope.keys() - fields.keys():
        names = " and ".join(repr(name) for name in ("default", *kinds))
        raise LoadError(
            f"{path}: rope scaling of type {kind or 'missing'} with {rope} is not "
            f"supported, only {names}."
        )
    for name in fields:
        if name not in rope:
            raise LoadError(f"{path}: the rope scaling has no key '{name}'. Add it.")
    return spec | {fields[name]: value for name, value in rope.items()}


def read_both(config: Any, path: str, *, partial: bool) -> list[RopeConfig]:
    """Read `rope_parameters` and `rope_scaling`, of which a config has one or both.

    Raises:
        LoadError: a rotation of a part of a head, unless the family may have one.
    """
    both = [
        read_record(RopeConfig, content or {}, f"{path}: {name}")
        for name, content in (
            ("rope_parameters", config.rope_parameters),
            ("rope_scaling", config.rope_scaling),
        )
    ]
    for fraction in (one.partial_rotary_factor for one in both):
        if not partial and fraction not in (None, 1.0):
            raise LoadError(
                f"{path}: 'partial_rotary_factor' is {fraction} in the rope "
                "parameters, only 1.0 is supported."
            )
    return both


def by_layer_type(config: Any, path: str, *, local: Any) -> tuple[Any, Any]:
    """Split the rotation of layers that read all tokens from that of layers in windows.

    Args:
        config: the keys of a config. transformers 5 has one dictionary for each type of
            layer in `rope_parameters`, 4 has the scaling of the first in
            `rope_scaling`.
        path: the file, named by errors.
        local: base of the frequencies in windows, where transformers 4 says it.

    Returns:
        The keys of both, as `read_rope` takes them.

    Raises:
        LoadError: `rope_parameters` of other layers.
    """
    nested = config.rope_parameters
    if nested is None:
        full = Rope(config.rope_theta, config.rope_scaling, None)
        return full, Rope(local, None, None)
    if nested.keys() - TYPES or not all(isinstance(x, dict) for x in nested.values()):
        raise LoadError(
            f"{path}: 'rope_parameters' has {', '.join(map(repr, nested))}; expected "
            f"dictionaries under {' and '.join(map(repr, TYPES))}."
        )
    first, second = (Rope(None, None, nested.get(name)) for name in TYPES)
    return first, second


class Rope(NamedTuple):
    """Keys of a config that say a rotation."""

    rope_theta: float | None
    rope_scaling: dict[str, Any] | None
    rope_parameters: dict[str, Any] | None


def agreed(values: Sequence[Any], name: str, path: str) -> Any:
    """Return the value that a config gives once or more, `None` if it gives none."""
    given = [value for value in values if value]
    for value in given:
        if value != given[0]:
            raise LoadError(
                f"{path}: {name} is given twice, as {given[0]} and as {value}: leave "
                "out the wrong one."
            )
    return given[0] if given else None
