"""What one family of models is, and how its weights become a tree.

A family is a value: a spec, an `init` that says every shape once, and a table from the
names in weight files to the leaves of the tree. The shapes of the tree come from
`jax.eval_shape(init)`; nothing else repeats them.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError, nearest
from mijax.io import Gguf, Tensors
from mijax.io.internal import check_weights
from mijax.models._parts import Parts, Placing

Into = Mapping[str, Callable[[np.ndarray], np.ndarray]]
# Arrays, or the shapes of arrays.
Leaves = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of a weight file (one per layer if its name has `{layer}`).

    Attributes:
        name: its name in the file.
        shape: its shape in the file.
        into: for each leaf that it fills, what makes one layer of it of the tensor.
        experts: number of tensors in each layer if its name has `{expert}`; `into` is
            given all of them, stacked.
        layers: number of layers of its tower; those of the spec by default.
        span: first layer that has it, and the one after the last; every layer by
            default. Layers of a leaf that no rule fills are 0.
        only: the layers that have it, where they are not a span.
    """

    name: str
    shape: tuple[int, ...]
    into: Into
    experts: int = 1
    layers: int | None = None
    span: tuple[int, int] | None = None
    only: tuple[int, ...] | None = None

    def numbers(self, count: int) -> tuple[int, ...]:
        """Return the layers that have it, where the spec has `count`."""
        if self.only is not None:
            return self.only
        return tuple(range(*(self.span or (0, self.layers or count))))


@dataclasses.dataclass(frozen=True)
class Table:
    """How a kind of weight file spells a family.

    Attributes:
        rules: every tensor that has to be there, used once.
        ignored: patterns of tensors that hold no weights.
        same: a tensor that some files repeat, and the tensor that it has to equal.
        optional: tensors that some files have; a leaf is computed where they are not.
        prefix: what some files put before every name.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    same: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: tuple[Rule, ...] = ()
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A spec with a name, and where its published weights are, if anywhere.

    Attributes:
        spec: the sizes.
        hub: id of the weights on the hub.
        input: preprocessing of an image model.
    """

    spec: Any
    hub: str | None = None
    input: Any = None


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that the loader knows of a family; see `mijax.models`.

    Attributes:
        name: `model_type` in config.json.
        spec: the class of its specs.
        init: random weights, `init(spec, key, dtype)`.
        presets: specs with names.
        computed: leaves that follow from the spec and are in no file.
        from_config: the spec that a Hugging Face config asks for, `(config, path)`.
        table: the table of Hugging Face names.
        gguf_name: `general.architecture` in GGUF files.
        from_gguf: the spec that GGUF metadata asks for.
        gguf_table: the table of GGUF names.
        renamed: tensors of a file under the names of `table`, for files that number
            them.
        build: the model of a file whose tensors one table does not say, such as those
            of several towers, `(spec, tensors, dtype, place)`.
        reader: preprocessing of the images of a prompt, for models that read some.
        turned: True if files hold the matrices of linear maps as `[in, out]`.
    """

    name: str
    spec: type
    init: Callable[[Any, PRNGKeyArray, DTypeLike], Any]
    presets: Mapping[str, Preset]
    computed: Callable[[Any], dict[str, np.ndarray]] = lambda spec: {}
    from_config: Callable[[Mapping[str, Any], str], Any] | None = None
    table: Callable[[Any], Table] | None = None
    gguf_name: str | None = None
    from_gguf: Callable[[Gguf], Any] | None = None
    gguf_table: Callable[[Any], Table] | None = None
    renamed: Callable[[Tensors], Tensors] | None = None
    build: Callable[[Any, Tensors, DTypeLike, Placing | None], Any] | None = None
    reader: Callable[[Any], Any] | None = None
    turned: bool = False

    def skeleton(self, spec: Any, dtype: DTypeLike = jnp.float32) -> Any:
        """The tree with shapes in place of arrays."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return eqx.filter_eval_shape(lambda k: self.init(spec, k, dtype), key)


def assemble(
    family: Family,
    spec: Any,
    source: Tensors,
    table: Table,
    dtype: DTypeLike,
    *,
    place: Placing | None = None,
) -> Any:
    """Builds a model of a weight file, using every tensor exactly once.

    Tensors are read one at a time and written straight into the stacked leaves, so
    memory stays near the size of the weights.

    Args:
        family: the model's family.
        spec: what the config says.
        source: the weight file.
        table: its names.
        dtype: precision of the weights.
        place: where each weight belongs, by its path and shape; the default device if
            it is not given.

    Returns:
        The model.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    names = real_names(source, table)
    rules = [*table.rules, *(rule for rule in table.optional if rule.name in names)]
    # A wrong size must be found before anything of that size exists.
    towers = (rule.layers for rule in rules if rule.layers is not None)
    check_layers(source, max([spec.layers, *towers]))
    check_names(source, table, names, rules, spec.layers)
    check_shapes(source, names, rules, spec.layers)
    skeleton = family.skeleton(spec, dtype)
    leaves = leaf_shapes(skeleton)
    arrays: dict[str, jax.Array] = {}
    parts: dict[str, Parts] = {}
    left = Counter(name for rule in rules for name in rule.into)
    for rule in rules:
        new = [name for name in rule.into if name not in parts]
        parts |= {name: Parts(name, leaves[name], place) for name in new}
        read_rule(rule, source, names, parts, spec.layers)
        left.subtract(rule.into.keys())
        arrays |= {
            name: parts.pop(name).array() for name in rule.into if not left[name]
        }
    for name, twin in table.same.items():
        check_same(source, names, name, twin)
    weights = family.computed(spec) | arrays
    return fill_tree(skeleton, weights, str(source.path), place=place)


def leaf_shapes(tree: Any) -> Leaves:
    """Names every array of a tree by its path, `blocks.attention.w_q`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in leaves if hasattr(leaf, "shape")}


def path_name(path: tuple[Any, ...]) -> str:
    """Writes a tree path with dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def fill_tree(
    skeleton: Any,
    arrays: Mapping[str, Any],
    where: str,
    *,
    place: Placing | None = None,
) -> Any:
    """Puts named arrays into a skeleton.

    Args:
        skeleton: a tree of shapes.
        arrays: an array for each of its leaves.
        where: what error messages name.
        place: where each array belongs; the default device if it is not given.

    Returns:
        The tree.

    Raises:
        LoadError: an array is missing, unknown or of the wrong shape.
    """
    leaves = leaf_shapes(skeleton)
    if missing := sorted(leaves.keys() - arrays.keys()):
        raise LoadError(f"{where}: missing {listed(missing)}. Give every weight.")
    if unknown := sorted(arrays.keys() - leaves.keys()):
        hint = nearest(unknown[0], leaves)
        raise LoadError(f"{where}: the model has no {listed(unknown)}.{hint}")

    def put(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(path)
        if name not in leaves:
            return leaf
        array = jnp.asarray(arrays[name], leaf.dtype)
        if array.shape != leaf.shape:
            raise LoadError(
                f"{where}: '{name}' has shape {array.shape}, the spec asks for "
                f"{leaf.shape}. Use the spec that belongs to the weights."
            )
        return (
            array if place is None else jax.device_put(array, place(name, leaf.shape))
        )

    return jax.tree_util.tree_map_with_path(put, skeleton)


def real_names(source: Tensors, table: Table) -> dict[str, str]:
    """Maps the names of the table to those of the file, which may have a prefix."""
    cut = len(table.prefix)
    prefixed = cut and any(name.startswith(table.prefix) for name in source.shapes)
    return {
        name[cut:] if prefixed and name.startswith(table.prefix) else name: name
        for name in source.shapes
        if not any(re.fullmatch(pattern, name) for pattern in table.ignored)
    }


def check_names(
    source: Tensors,
    table: Table,
    names: Mapping[str, str],
    rules: list[Rule],
    layers: int,
) -> None:
    """Refuses missing and unused tensors, all of them named in one line."""
    wanted = {name for rule in rules for name in each_layer(rule, layers)}
    missing = sorted(wanted - names.keys())
    unused = sorted(names[n] for n in names.keys() - wanted - table.same.keys())
    if missing or unused:
        problems = [
            f"{problem} {listed(which)}"
            for problem, which in (("missing", missing), ("unused", unused))
            if which
        ]
        raise LoadError(
            f"{source.path}: the weights do not fit the config: {'; '.join(problems)}. "
            "Use the config.json that belongs to these weights."
        )


def check_layers(source: Tensors, layers: int) -> None:
    """Refuses more layers than the file has tensors."""
    if layers > len(source.shapes):
        raise LoadError(
            f"{source.path}: the config asks for {layers} layers, the file has "
            f"{len(source.shapes)} tensors. Use the config of these weights."
        )


def check_shapes(
    source: Tensors, names: Mapping[str, str], rules: list[Rule], layers: int
) -> None:
    """Refuses tensors of another shape than the config asks for."""
    for rule in rules:
        for real in (names[name] for name in each_layer(rule, layers)):
            if source.shapes[real] != rule.shape:
                raise LoadError(
                    f"{source.path}: tensor '{real}' has shape {source.shapes[real]}, "
                    f"the config asks for {rule.shape}. Use the config that "
                    "belongs to these weights."
                )


def each_layer(rule: Rule, layers: int) -> list[str]:
    """Every name that a rule stands for."""
    if "{layer}" not in rule.name:
        return [rule.name]
    return [
        rule.name.replace("{layer}", str(layer)).replace("{expert}", str(expert))
        for layer in rule.numbers(layers)
        for expert in range(rule.experts)
    ]


def read_rule(
    rule: Rule,
    source: Tensors,
    names: Mapping[str, str],
    parts: Mapping[str, Parts],
    layers: int,
) -> None:
    """Reads the tensors of a rule into the leaves that they fill."""
    stacked, every = "{layer}" in rule.name, each_layer(rule, layers)
    at = rule.numbers(layers) if stacked else (None,)
    for i, layer in enumerate(at):
        start = i * rule.experts
        reals = [names[name] for name in every[start : start + rule.experts]]
        found = [check_weights(source.read(r), r, source.path) for r in reals]
        tensor = np.stack(found) if "{expert}" in rule.name else found[0]
        for leaf, transform in rule.into.items():
            parts[leaf].fill(layer, transform(tensor))


def check_same(source: Tensors, names: Mapping[str, str], name: str, twin: str) -> None:
    """Refuses a tied tensor that differs from the one that it is tied to."""
    if name in names and not np.array_equal(
        source.read(names[name]), source.read(names[twin])
    ):
        raise LoadError(
            f"{source.path}: '{names[name]}' differs from '{names[twin]}', but the "
            "config ties them. Set tie_word_embeddings to false in config.json."
        )


def listed(names: list[str], most: int = 6) -> str:
    """Names the first few and counts the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


def same(tensor: np.ndarray) -> np.ndarray:
    """The tensor as the file has it."""
    return tensor


def short(number: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(number)))
