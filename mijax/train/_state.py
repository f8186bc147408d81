"""Everything that a training run is, as one tree of arrays."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Int


class State(eqx.Module):
    """A training run between two updates; a checkpoint is this tree.

    Attributes:
        params: what is fitted.
        memory: what the objective carries on without gradients.
        optimiser: the state of the optimiser.
        step: updates done.
        source: the state of the source, which decides the next batches.
    """

    params: Any
    memory: Any
    optimiser: Any
    step: Int[Array, ""]
    source: Any
