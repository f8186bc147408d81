"""The sites of a traced function: every mark, and a table by name."""

import functools
import html
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mijax._errors import SiteError, nearest
from mijax.core._mark import OPAQUE, SITE, ClosedJaxpr, bodies, manual

# Equations that are their body, evaluated in place.
CALLS = ("jit", "pjit", "closed_call", "core_call")
REMATS = ("checkpoint", "remat", "remat2")
RULES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
OPEN = (*CALLS, *REMATS, *RULES)
LAYER, STEP = "layer", "step"

Path = tuple[Any, ...]


class Loop(NamedTuple):
    """A loop around a mark.

    Attributes:
        kind: `"scan"`, `"while"`, or `"mesh"` for an axis of a `shard_map`.
        length: number of iterations or devices, `None` where it is not known.
        name: name of the mesh axis.
    """

    kind: str
    length: int | None
    name: str = ""


class Mark(NamedTuple):
    """One occurrence of a site in the traced program.

    Attributes:
        name: name of the site.
        path: place of the equation: its index in each jaxpr from the outside in.
        axes: names of the axes of the marked value.
        shape: its shape.
        dtype: its dtype.
        loops: the loops around it, outermost first.
        names: names of these loops.
        first: layer of the first iteration.
        layers: layers that this occurrence stands for.
        rule: the custom differentiation rule that it is inside of, if any.
    """

    name: str
    path: Path
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[Loop, ...]
    names: tuple[str, ...]
    first: int = 0
    layers: int = 1

    @property
    def stacked(self) -> tuple[tuple[str, int], ...]:
        """Name and length of each loop whose iterations a capture keeps."""
        pairs = zip(self.names, self.loops, strict=True)
        return tuple((name, loop.length) for name, loop in pairs if loop.length)

    @property
    def scanned(self) -> bool:
        """True if its layers are iterations of a loop."""
        return any(name == LAYER for name, _ in self.stacked)


class SiteInfo(NamedTuple):
    """One site of a model.

    Attributes:
        name: its name.
        layers: number of layers, `None` for a site that occurs once, outside of loops.
        axes: names of the axes of one layer, loops within a layer first.
        shapes: shape of each layer (one entry without layers).
        dtype: dtype of its values.
        loops: number of the axes that are loops within a layer.
        scanned: True if its layers are iterations of one loop.
    """

    name: str
    layers: int | None
    axes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    loops: int = 0
    scanned: bool = False

    @property
    def ragged(self) -> bool:
        """True if the shapes of layers differ, so that activations are a tuple."""
        return len(set(self.shapes)) > 1

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        """Cells of the table."""
        layers = "" if self.layers is None else f"0..{self.layers - 1}"
        shapes = dict.fromkeys(str(shape) for shape in self.shapes)
        return (
            self.name,
            layers.removeprefix("0..0") or layers[:1],
            " ".join(self.axes),
            ", ".join(shapes),
            str(self.dtype),
        )


class SiteTable(Mapping[str, SiteInfo]):
    """The sites of a model in the order of computation, by name.

    Prints as a table and renders as one in notebooks.
    """

    def __init__(self, sites: Mapping[str, SiteInfo]):
        self._sites = dict(sites)

    def __getitem__(self, name: str) -> SiteInfo:
        """Return one site.

        Raises:
            SiteError: the model does not have it.
        """
        check_names([name], self._sites)
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __hash__(self) -> int:
        return hash(tuple(self._sites.values()))

    def _rows(self) -> list[tuple[str, ...]]:
        head = ("name", "layers", "axes", "shape", "dtype")
        return [head, *(site.row for site in self._sites.values())]

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        pad = lambda row: "  ".join(map(str.ljust, row, widths)).rstrip()  # noqa: E731
        return "\n".join(map(pad, rows))

    def _repr_html_(self) -> str:
        """Render the table in a notebook."""
        head, *body = self._rows()
        cells = lambda row, tag: "".join(  # noqa: E731
            f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row
        )
        lines = [f"<tr>{cells(head, 'th')}</tr>"]
        lines += [f"<tr>{cells(row, 'td')}</tr>" for row in body]
        return f"<table>{''.join(lines)}</table>"


def table(marks: tuple[Mark, ...]) -> SiteTable:
    """Sum up the marks of a traced function by name."""
    found: dict[str, SiteInfo] = {}
    for name in dict.fromkeys(mark.name for mark in marks):
        own = [mark for mark in marks if mark.name == name]
        shapes: dict[int, tuple[int, ...]] = {}
        for mark in own:
            inner = tuple(size for loop, size in mark.stacked if loop != LAYER)
            for layer in range(mark.first, mark.first + mark.layers):
                shapes[layer] = (*inner, *mark.shape)
        first = own[0]
        layered = len(shapes) > 1 or first.scanned
        loops = tuple(loop for loop, _ in first.stacked if loop != LAYER)
        found[name] = SiteInfo(
            name,
            len(shapes) if layered else None,
            (*loops, *first.axes),
            tuple(shapes.values()),
            first.dtype,
            len(loops),
            len(own) == 1 and first.scanned,
        )
    return SiteTable(found)


# Jaxprs are told apart by identity; walking a deep one again would take milliseconds.
@functools.lru_cache(maxsize=128)
def marks_of(closed: ClosedJaxpr) -> tuple[Mark, ...]:
    """Find every mark and the layer that it stands for."""
    found: list[Mark] = []
    _walk(closed, (), (), {}, found)
    for name in {mark.name for mark in found}:
        own = [mark for mark in found if mark.name == name]
        loops = [tuple(n for n, _ in mark.stacked if n != LAYER) for mark in own]
        kinds = {(n, mark.axes) for n, mark in zip(loops, own, strict=True)}
        if len(kinds) > 1:
            ways = " and ".join(sorted(repr(" ".join((*n, *a))) for n, a in kinds))
            raise SiteError(
                f"Site {name!r} is used with different axes: {ways}. Give each its "
                "own name."
            )
        if len({mark.dtype for mark in own}) > 1:
            raise SiteError(
                f"Site {name!r} is used with different dtypes: "
                f"{sorted({str(mark.dtype) for mark in own})}. Give each its own name."
            )
    return tuple(found)


def _walk(
    closed: ClosedJaxpr,
    path: Path,
    loops: tuple[Loop, ...],
    count: dict[str, int],
    found: list[Mark],
) -> None:
    """Add the marks of a jaxpr; `count` holds the layers of each name so far."""
    for i, equation in enumerate(closed.jaxpr.eqns):
        here, kind = (*path, i), equation.primitive.name
        if kind == SITE:
            mark = _mark(equation, here, loops, count.get(equation.params["name"], 0))
            count[mark.name] = mark.first + mark.layers
            found.append(mark)
        elif kind == "cond":
            before, after = dict(count), dict(count)
            for k, branch in enumerate(equation.params["branches"]):
                own = dict(before)
                _walk(branch, (*here, k), loops, own, found)
                for name, n in own.items():
                    after[name] = max(after.get(name, 0), n)
            count |= after
        elif kind not in OPAQUE:
            inside = [(n, body) for n, body in bodies(equation) if _any(body)]
            if not inside:
                continue
            [(name, body), *more] = inside
            around = _loops(equation)
            if around is None or more or name == "cond_jaxpr":
                raise SiteError(
                    f"Site {_any(body)!r} is inside `{kind}`, where it can be neither "
                    "read nor changed: mark the value outside of it."
                )
            _walk(body, here, (*loops, *around), count, found)


def _loops(equation: Any) -> tuple[Loop, ...] | None:
    """Return the loops that an equation puts around its body, None if unknown."""
    kind, params = equation.primitive.name, equation.params
    if kind == "scan":
        return (Loop("scan", params["length"]),)
    if kind == "while":
        return (Loop("while", None),)
    if kind == "shard_map":
        sizes = dict(params["mesh"].shape)
        return tuple(Loop("mesh", sizes[axis], axis) for axis in manual(equation))
    return () if kind in OPEN else None


def _any(closed: ClosedJaxpr) -> str | None:
    """Return the name of a site anywhere inside, None without one."""
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == SITE:
            return equation.params["name"]
        if equation.primitive.name in OPAQUE:
            continue
        for _, body in bodies(equation):
            if (name := _any(body)) is not None:
                return name
    return None


def _mark(equation: Any, path: Path, loops: tuple[Loop, ...], first: int) -> Mark:
    """Describe a mark: names its loops and counts its layers."""
    params, value = equation.params, equation.invars[0].aval
    names = _loop_names(params["name"], loops, params["loops"])
    layers = [lp.length for lp, n in zip(loops, names, strict=True) if n == LAYER]
    return Mark(
        params["name"],
        path,
        params["axes"],
        tuple(value.shape),
        value.dtype,
        loops,
        names,
        first,
        (layers[0] or 1) if layers else 1,
    )


def _loop_names(
    site: str, loops: tuple[Loop, ...], given: tuple[str, ...]
) -> tuple[str, ...]:
    """Name loops: those that are given from the innermost out, the rest by rule."""
    counted = [i for i, loop in enumerate(loops) if loop.kind != "mesh"]
    if len(given) > len(counted):
        raise SiteError(
            f"Site {site!r} names the loops {' '.join(given)!r} around it, but it is "
            f"in {len(counted)}."
        )
    names = [loop.name for loop in loops]
    rest = counted[: len(counted) - len(given)]
    for i, name in zip(counted[len(rest) :], given, strict=True):
        names[i] = name
    for depth, i in enumerate(rest):
        scan = loops[i].kind == "scan"
        name = LAYER if depth == 0 and scan and LAYER not in given else STEP
        tries = [name, *(f"{STEP}_{k}" for k in range(2, len(loops) + 2))]
        names[i] = next(one for one in tries if one not in names)
    return tuple(names)


def check_names(names: Any, known: Mapping[str, Any]) -> None:
    """Refuse names of sites that a model does not have."""
    for name in names:
        if name not in known:
            close = nearest(name, known) if known else " The model marks no sites."
            raise SiteError(f"The model has no site {name!r}.{close}")
