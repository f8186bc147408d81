"""Training checkpoints of one model, stacked along a leading axis of its weights."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mijax._errors import LoadError, nearest
from mijax.data import Tokenizer
from mijax.models._family import path_name
from mijax.models._load import Loaded, load


@dataclasses.dataclass(frozen=True)
class Revisions:
    """Checkpoints of one model, stacked.

    Attributes:
        model: the model; every array has a leading axis `revision`.
        names: the revisions, in the order of that axis.
        text: the tokenizer of the first one, or `None`.
        spec: the sizes, which all share.
        source: where they came from.
        digests: `"sha256:..."` of the weight files of each.
    """

    model: Any
    names: tuple[str, ...]
    text: Tokenizer | None
    spec: Any
    source: str
    digests: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Revisions({self.source!r}, {len(self.names)} revisions)"

    def map(self, fn: Callable[[Any], Any], *, batch: int | None = None) -> Any:
        """Evaluate a function of a model at every revision, in one program.

        Args:
            fn: a JAX function of a model, such as a metric of `mijax.run`.
            batch: number of revisions that are computed at a time, all by default:
                fewer take less memory for activations.

        Returns:
            What it returns, with a leading axis `revision`.
        """
        arrays, static = eqx.partition(self.model, eqx.is_array)

        def one(arrays: Any) -> Any:
            return fn(eqx.combine(arrays, static))

        if batch is None:
            return jax.jit(jax.vmap(one))(arrays)
        return jax.jit(lambda arrays: jax.lax.map(one, arrays, batch_size=batch))(
            arrays
        )

    def at(self, name: str) -> Any:
        """Return the model of one revision.

        Args:
            name: the revision.

        Raises:
            LoadError: it is not one of these.
        """
        if name not in self.names:
            raise LoadError(
                f"{self.source} was loaded without the revision '{name}'."
                f"{nearest(name, self.names)}"
            )
        i = self.names.index(name)
        return jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, self.model)


def load_many(
    name_or_path: str | os.PathLike[str],
    revisions: Sequence[str],
    *,
    dtype: DTypeLike = jnp.float32,
) -> Revisions:
    """Load training checkpoints of one model into one tree of stacked weights.

    Revisions are read one after the other. Memory holds the stacked weights, which are
    those of one model times the number of revisions, and one more model while loading.

    Args:
        name_or_path: a hub id or preset, whose revisions are branches, tags or commits,
            such as `"step1000"` of Pythia; or a folder, whose revisions are folders
            in it.
        revisions: the revisions, in the order of the stack.
        dtype: precision of the weights.

    Returns:
        The stacked model, with its spec.

    Raises:
        LoadError: no revisions, one that is given twice or does not exist, or
            revisions with other sizes than the first.
        NetworkError: the hub cannot be reached.

    Examples:
        >>> import jax, mijax, pathlib, tempfile
        >>> spec = mijax.models.AttentionOnlySpec(layers=1, embed=16, vocab=50)
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for step in (0, 100):
        ...     model = mijax.models.init(spec, jax.random.key(step))
        ...     mijax.models.save(model, spec, folder / f"step{step}")
        >>> many = load_many(folder, ["step0", "step100"])
        >>> tokens = jax.numpy.array([5, 6, 7])
        >>> many.map(lambda model: mijax.run(model, tokens)[-1].max()).shape
        (2,)
    """
    names = tuple(revisions)
    if isinstance(revisions, str) or not names or len(set(names)) < len(names):
        raise LoadError(
            f"revisions must be a list of distinct names, got {revisions!r:.80}. Give "
            "each revision once."
        )
    first = load(name_or_path, dtype=dtype, revision=names[0])
    leaves, tree = jax.tree.flatten(first.model)
    stacks = [np.empty((len(names), *leaf.shape), leaf.dtype) for leaf in leaves]
    digests = []
    for i, name in enumerate(names):
        one = load(name_or_path, dtype=dtype, revision=name) if i else first
        check_same_sizes(first, one, names[0], name)
        for stack, leaf in zip(stacks, jax.tree.leaves(one.model), strict=True):
            stack[i] = np.asarray(leaf)
        digests.append(one.digest)
    stacked = []
    while stacks:
        # Load one at a time, to avoid a second copy of all weights.
        stacked.append(jnp.asarray(stacks.pop(0)))
    return Revisions(
        model=jax.tree.unflatten(tree, stacked),
        names=names,
        text=first.text,
        spec=first.spec,
        source=os.fspath(name_or_path),
        digests=tuple(digests),
    )


def check_same_sizes(first: Loaded, other: Loaded, at: str, name: str) -> None:
    """Raise if a revision's spec or shapes differ from the first revision's.

    Raises:
        LoadError: they differ.
    """
    where = f"{other.source}: revision '{name}'"
    advice = "Load revisions of one model, or each by itself."
    if type(first.spec) is not type(other.spec):
        kinds = (type(other.spec).__name__, type(first.spec).__name__)
        raise LoadError(f"{where} has a {kinds[0]}, '{at}' a {kinds[1]}. {advice}")
    for field in dataclasses.fields(first.spec):
        pair = [getattr(one.spec, field.name) for one in (other, first)]
        if pair[0] != pair[1]:
            raise LoadError(
                f"{where} has {field.name}={pair[0]!r:.60}, '{at}' has "
                f"{pair[1]!r:.60}. {advice}"
            )
    shapes = [
        {path_name(path): leaf.shape for path, leaf in found}
        for found in (
            jax.tree_util.tree_flatten_with_path(one.model)[0] for one in (other, first)
        )
    ]
    differ = [leaf for leaf in shapes[1] if shapes[0].get(leaf) != shapes[1][leaf]]
    if differ or jax.tree.structure(first.model) != jax.tree.structure(other.model):
        leaf = differ[0] if differ else "its weight processing"
        raise LoadError(f"{where} differs from '{at}' in {leaf}. {advice}")
