"""Sites in penzai models: sublayers wrapped in the tree, named axes kept."""

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from penzai import pz

from mijax._errors import SiteError
from mijax.core import site
from mijax.interop._chosen import (
    Choice,
    axes_of,
    choose,
    marked,
    path_name,
    selected,
)


class PenzaiFunction(eqx.Module):
    """A penzai model as a pure function, a pytree of its parameters.

    Attributes:
        model: the model, with slots in place of its variables and marked sublayers.
        variables: values of the variables.
    """

    model: Any
    variables: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            SiteError: the call changes the model's variables.
        """
        copies = [value.unfreeze_as_copy() for value in self.variables]
        output = pz.bind_variables(self.model, copies)(*args, **kwargs)
        before = jax.tree.leaves(self.variables)
        after = jax.tree.leaves([copy.freeze() for copy in copies])
        if len(before) != len(after) or any(map(operator.is_not, before, after)):
            raise SiteError(
                "Calling the model changes its variables, as a key-value cache does: "
                "mark a model without state."
            )
        return output


@pz.pytree_dataclass
class Marked(pz.nn.Layer):
    """A layer whose output is marked."""

    layer: Any
    name: str = dataclasses.field(metadata={"pytree_node": False})
    axes: str = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Call the layer and mark its output."""
        output = self.layer(argument, **side_inputs)
        return marked(self.name, self.axes, output, pz.nx.is_namedarray, _mark)


def mark_penzai(
    model: Any,
    sites: Mapping[str, Choice | pz.Selection],
    *,
    axes: Mapping[str, str] | None = None,
) -> PenzaiFunction:
    r"""Mark outputs of sublayers of a penzai model; the model is not rewritten.

    Named axes of an output are the axes of its site. Positional axes come first and are
    called `axis_0 axis_1 ...`.

    Args:
        model: the model; its parameters are copied.
        sites: for each site name the layers whose output it is: a class
            (`pz.nn.Attention`), a regular expression for whole paths
            (`r"body\.sublayers\.\d+"`), or a selection
            (`pz.select(model).at_instances_of(pz.nn.Attention)`).
        axes: for each site name the order of its axes, as for `mijax.site`; by default
            the order in memory. Needed where the order differs between layers.

    Returns:
        A pure function with the arguments of the model.

    Raises:
        SiteError: a choice that fits no layer, or a layer with two names.

    Examples:
        >>> import jax, mijax
        >>> from penzai import pz
        >>> from penzai.models.simple_mlp import MLP
        >>> mlp = MLP.from_config(jax.random.key(0), [4, 8, 2])
        >>> marked = mijax.interop.mark_penzai(mlp, {"hidden": pz.nn.Elementwise})
        >>> x = pz.nx.wrap(jax.numpy.ones((3, 4))).tag("batch", "features")
        >>> mijax.sites(marked, x)
        name    layers  axes            shape   dtype
        hidden          batch features  (3, 8)  float32
    """
    names = axes_of(sites, axes)
    layers = dict(_layers(model, ()))
    choices = {
        name: selected(name, choice, layers)
        if isinstance(choice, pz.Selection)
        else choice
        for name, choice in sites.items()
    }
    chosen = choose(choices, layers.items())

    def wrap(node: Any, path: tuple[Any, ...]) -> Any:
        children, rebuild = _children(node)
        if children:
            new = [wrap(child, (*path, key)) for key, child in children]
            node = jax.tree.unflatten(rebuild, new)
        name = chosen.get(path_name(path))
        return node if name is None else Marked(node, name, names[name])

    slots, values = pz.unbind_variables(wrap(model, ()), freeze=True)
    return PenzaiFunction(slots, values)


def _layers(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, pz.nn.Layer]]:
    """Yield the path of every layer below a node, from the outside in."""
    if path and isinstance(node, pz.nn.Layer):
        yield path_name(path), node
    for key, child in _children(node)[0]:
        yield from _layers(child, (*path, key))


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Return the keys and children of a node, none for a leaf, and its structure."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda one: one is not node
    )
    return [(path[0], child) for path, child in pairs if path], structure


def _mark(name: str, x: Any, axes: str) -> Any:
    """Mark an array; its named axes come last, in the order of `axes`."""
    if not pz.nx.is_namedarray(x):
        return site(name, x, axes)
    view = x.as_namedarrayview()
    given = axes.rpartition(":")[2].split()
    places: dict[Any, int] = view.data_axis_for_name
    own: list[Any] = sorted(places, key=places.__getitem__)
    positional = view.data_axis_for_logical_axis
    if any(not isinstance(one, str) or {" ", ":"} & {*one} for one in own):
        raise SiteError(
            f"Site {name!r} has the named axes {own}: an axis of a site is one word "
            "without a colon. Rename the axis."
        )
    if given and sorted(given[len(positional) :]) != sorted(own):
        raise SiteError(
            f"Site {name!r} has {len(positional)} positional axes and the named axes "
            f"{own}, got axes={axes!r}: give the positional ones first, then these in "
            "any order."
        )
    if not given:
        axes += " ".join([*(f"axis_{i}" for i in range(len(positional))), *own])
        given = axes.rpartition(":")[2].split()
    order = [*positional, *(places[one] for one in given[len(positional) :])]
    value = site(name, view.data_array.transpose(order), axes)
    value = value.transpose(np.argsort(order))
    # Back in the layout that it had, so that what follows is the same program.
    if isinstance(x, pz.nx.NamedArray):
        return dataclasses.replace(x, data_array=value)
    return dataclasses.replace(view, data_array=value)
