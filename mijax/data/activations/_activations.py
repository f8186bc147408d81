"""Activations of a model as shuffled batches of rows."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mijax._errors import ShapeError, TokenError
from mijax.core import AbstractModel, Site
from mijax.core.internal import digest as digest_of
from mijax.core.internal import stated
from mijax.data._source import AbstractSource
from mijax.data.activations._batch import Batch
from mijax.data.activations._buffer import Buffered, draw, fill, shuffle
from mijax.data.activations._reading import Reader, check, of_one_width, traced
from mijax.data.text._stream import Tokens, valid

DATA = "data"
BATCHES = 16


class Activations(AbstractSource):
    """Activations of a model, one row per token, shuffled in a buffer on the device.

    Rows of padding and of excluded tokens never enter the buffer. A batch is drawn
    without replacement: every row of an epoch comes once. When less than half of the
    buffer is left it is filled up and shuffled, with the seed of the tokens.
    Running the model, reading the sites, dropping rows and writing to the buffer is
    one compiled program, which runs no layer above the highest site. How many rows it
    gives is known from the tokens alone, so that the device is never waited for.

    The state is a tree of arrays, the buffer included. While the buffer is filled up
    there are two of it, that of the old state and that of the new.

    Args:
        model: the model, or several side by side that read the same tokens.
        tokens: where tokens come from.
        inputs: what is read: a `Site` gives `[batch, embed]`, a list of them gives
            `[batch, site, embed]`. A list of models adds an axis before that:
            `[batch, model, embed]`. Heads are joined if none is chosen.
        targets: what is to be predicted from it; the inputs themselves if `None`.
        batch: rows of a batch.
        buffer: rows that the buffer is filled up to; 16 batches if `None`.
        exclude: ids of tokens whose rows are left out. If `None`, the stream's `bos`
            and separator: the first token of a prompt often is an outlier that
            attention rests on.
        mesh: devices; rows of the buffer and of batches are split over its axis
            `"data"`. They are the same rows as on one device.

    Raises:
        SiteError: a site that the model does not have, or not one layer of it.
        PositionError: rows of tokens longer than the model's context.
        ShapeError: sites of unequal width, a buffer smaller than a batch, or sizes
            that the mesh does not divide.
        TokenError: the tokens have too few rows that are not left out, or the model
            does not have them.

    Examples:
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> corpus = mijax.data.Corpus.from_ids([range(1, 60)], separator=0)
        >>> tokens = Tokens(corpus, seq=10, batch=2)
        >>> site = Site("resid_post", layer=1)
        >>> source = Activations(model, tokens, site, batch=8, buffer=32)
        >>> state, batch = source.batch(source.start())
        >>> batch.x.shape, batch.y is batch.x
        ((8, 32), True)
    """

    reader: Reader
    kinds: Batch
    tokens: Tokens
    rows: int = eqx.field(static=True)
    buffer: int = eqx.field(static=True)
    exclude: tuple[int, ...] = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def __init__(
        self,
        model: AbstractModel | Sequence[AbstractModel],
        tokens: Tokens,
        inputs: Site | Sequence[Site],
        *,
        targets: Site | Sequence[Site] | None = None,
        batch: int = 4096,
        buffer: int | None = None,
        exclude: Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        specials = (tokens.bos, tokens.corpus.separator)
        given = specials if exclude is None else exclude
        self.tokens = tokens
        self.rows = batch
        self.buffer = BATCHES * batch if buffer is None else buffer
        self.exclude = tuple(sorted({int(i) for i in given if i is not None}))
        self.mesh = mesh
        check_sizes(self)
        model = replicated(model, mesh)
        self.reader, self.kinds = reader_of(model, tokens, inputs, targets)
        check_rows(self)

    @property
    def slots(self) -> int:
        """Rows that the buffer can hold: those of one batch of tokens more."""
        return self.buffer + self.tokens.rows * self.tokens.seq

    @property
    def available(self) -> int | None:
        """Number of rows that all epochs give, `None` without end."""
        epochs = self.tokens.epochs
        return None if epochs is None else self.tokens.count(self.exclude) * epochs

    @property
    def digest(self) -> str:
        """SHA-256 of weights, sites, tokens and every setting but the mesh."""
        settings = (self.rows, self.buffer, self.exclude, self.tokens.digest)
        return digest_of((self.reader, settings))

    def start(self) -> Buffered:
        """Returns the state with an empty buffer."""
        # As many rows on every device; those beyond `slots` are never used.
        shards = 1 if self.mesh is None else self.mesh.shape[DATA]
        height = -(-self.slots // shards) * shards
        rows = jax.tree.map(
            lambda a: jnp.zeros((height, *a.shape[2:]), a.dtype, device=self._split),
            self.kinds,
        )
        return Buffered(
            tokens=self.tokens.start(),
            rows=rows,
            order=np.arange(self.slots, dtype=np.int32),
            free=np.asarray(self.slots, np.int32),
            refills=np.asarray(0, np.int32),
        )

    def batch(self, state: Any) -> tuple[Buffered, Batch]:
        """Returns the next state and batch.

        Raises:
            TokenError: the epochs of the tokens are over.
        """
        state = placed(state, self.mesh)
        if self.slots - int(state.free) < max(self.rows, self.buffer // 2):
            state = self._refilled(state)
        left = self.slots - int(state.free)
        if left < self.rows:
            raise TokenError(
                f"The {self.tokens.epochs} epochs of tokens are over: {left} rows are "
                f"left and a batch takes {self.rows}. Give more epochs or take fewer "
                "batches."
            )
        batch = draw(state.rows, state.order, state.free, self.rows, self._split)
        return state.at(free=int(state.free) + self.rows), batch

    def _refilled(self, state: Buffered) -> Buffered:
        """Fills the buffer up and shuffles what is in it."""
        at, free = int(state.tokens), int(state.free)
        if at == self.tokens.length:
            return state
        # The buffer of the old state stays as it is; this one is written over.
        rows = jax.tree.map(lambda a: jnp.array(a, copy=True), state.rows)
        while self.slots - free < self.buffer and at != self.tokens.length:
            batch = self.tokens.whole(at)
            mask = valid(batch, self.exclude)
            tokens, lengths = (
                spread(np.asarray(part), self._split)
                for part in (batch.tokens, batch.lengths)
            )
            given = (self.reader, tokens, lengths, mask, state.order, np.int32(free))
            rows = fill((given, self._split), rows)
            at, free = at + 1, free - int(mask.sum())
        refills = int(state.refills)
        seeds = np.uint32(self.tokens.seed), np.int32(refills)
        order = shuffle(state.order, np.int32(free), *seeds)
        state = Buffered(state.tokens, rows, order, state.free, state.refills)
        return state.at(tokens=at, free=free, refills=refills + 1)

    @property
    def _split(self) -> NamedSharding | None:
        """How rows are laid out on the mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, P(DATA))


def reader_of(
    model: Any, tokens: Tokens, inputs: Any, targets: Any
) -> tuple[Reader, Batch]:
    """Checks the sites in every model, and that what is stacked has one width.

    Returns:
        What reads them, and shapes and types of what it gives, `[1, seq, ...]`.
    """
    given = [
        None if sites is None else (sites,) if isinstance(sites, Site) else tuple(sites)
        for sites in (inputs, targets)
    ]
    if () in given or model == ():
        raise ShapeError("There is nothing to read: give a model and a site at least.")
    models = model if isinstance(model, tuple) else (model,)
    if not tokens.pack and any(map(reads_padding, models)):
        raise ShapeError(
            "The model is not causal and its blocks do not state `masks_padding`, so "
            "padding of short rows would change their activations: give Tokens(..., "
            "pack=True)."
        )
    into, out = given[0] or (), given[1] or ()
    last = max(tokens.corpus.last, tokens.bos or 0)
    kinds = [check(one, (*into, *out), tokens.seq, last) for one in models]
    split = len(into)
    of_one_width(into * len(models), [k for one in kinds for k in one[:split]])
    of_one_width(out * len(models), [k for one in kinds for k in one[split:]])
    stack = (not isinstance(inputs, Site), not isinstance(targets, Site))
    reader = Reader(model, traced(into), traced(out), stack)
    return reader, jax.eval_shape(reader.stacked, kinds)


def reads_padding(model: AbstractModel) -> bool:
    """Return True if padding changes the activations of a model."""
    return not (model.causal or stated(model.blocks, "masks_padding"))


def check_sizes(source: Activations) -> None:
    """Refuses a buffer smaller than a batch, and what a mesh cannot split."""
    if not 0 < source.rows <= source.buffer:
        raise ShapeError(
            f"A buffer of {source.buffer} rows cannot give batches of {source.rows}: "
            "give a larger buffer, of many batches if rows are to be shuffled well."
        )
    if source.mesh is None:
        return
    if DATA not in source.mesh.axis_names:
        raise ShapeError(
            f"The mesh has axes {source.mesh.axis_names}; rows are split over "
            f"{DATA!r}: name one of them so."
        )
    shards = source.mesh.shape[DATA]
    for name, size in (("batch", source.rows), ("tokens' batch", source.tokens.rows)):
        if size % shards:
            raise ShapeError(
                f"The {name} of {size} rows cannot be split over {shards} devices: "
                "give a multiple."
            )


def check_rows(source: Activations) -> None:
    """Refuses tokens that cannot fill one batch."""
    epochs = source.tokens.epochs
    enough = 1 if epochs is None else source.rows
    rows = source.tokens.count(source.exclude, enough) * (epochs or 1)
    if rows < enough:
        raise TokenError(
            f"The tokens give {rows} rows that are not left out and a batch takes "
            f"{source.rows}: give more text or exclude less."
        )


def replicated(model: Any, mesh: Mesh | None) -> Any:
    """Puts a model on every device, where it is not laid out on the mesh already."""
    model = model if isinstance(model, AbstractModel) else tuple(model)
    if mesh is None:
        return model

    def put(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        now = getattr(leaf, "sharding", None)
        if isinstance(now, NamedSharding) and now.mesh == mesh:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, P()))

    return jax.tree.map(put, model)


def spread(array: np.ndarray, split: NamedSharding | None) -> Any:
    """Gives each device its rows; of several processes, each gives to its own."""
    if split is None:
        return array
    return jax.make_array_from_callback(array.shape, split, lambda at: array[at])


def placed(state: Buffered, mesh: Mesh | None) -> Buffered:
    """Puts a state that was restored on the devices; counts stay on the host."""

    def put(leaf: Any, spec: P) -> Any:
        if mesh is not None:
            return jax.device_put(leaf, NamedSharding(mesh, spec))
        return leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)

    rows = jax.tree.map(lambda leaf: put(leaf, P(DATA)), state.rows)
    counts = state.tokens, state.free, state.refills
    tokens, free, refills = (np.asarray(count) for count in counts)
    return Buffered(tokens, rows, put(state.order, P()), free, refills)
