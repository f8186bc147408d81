"""Exact scores of nodes: each is replaced by itself, in one sweep per site."""

from typing import Any

import numpy as np

from mijax._progress import Progress
from mijax.circuits.nodes._gated import run_masks
from mijax.circuits.nodes._method import AbstractNodeMethod, scores_of
from mijax.circuits.nodes._nodes import NodeSite
from mijax.circuits.nodes._scores import NodeScores
from mijax.circuits.nodes._task import NodeTask
from mijax.core import Chunks, Patch, capture, sweep


class NodeExact(AbstractNodeMethod):
    """Replaces every node, one at a time: a `mijax.sweep` for each site.

    The score is the metric of the model minus that with the node replaced. The runs
    skip what a node does not change; a site whose layers are not iterations of a scan
    compiles at most four programs, each for a range of layers.
    """

    def discover(self, task: NodeTask, progress: Progress, memory: int) -> NodeScores:
        """Sweep over the nodes of each site."""
        each = [_falls(task, site, progress, memory) for site in task.nodes.sites]
        return scores_of(task, np.concatenate(each, 1), self)


def _falls(task: NodeTask, part: NodeSite, progress: Progress, memory: int) -> Any:
    """Return the fall of the metric for every node of a site, `[example, node]`."""
    if not part.axes:
        masks = np.ones((2, len(task.nodes)), bool)
        masks[1, part.start] = False
        full, without = run_masks(task, masks, progress=False, memory=memory)
        return (full - without)[:, None]
    edit = task.ablation
    if edit is None:
        edit = Patch(capture(task.model, task.corrupt, part.site))

    def partly(done: int, total: int) -> None:
        if progress:
            ran = (part.stop - part.start) * done // total
            progress(part.start + ran, len(task.nodes))

    indices = part.indices()
    single = len(part.axes) == 1
    over = {part.axes[0]: [i for (i,) in indices]} if single else {part.axes: indices}
    found = sweep(
        task.model,
        task.clean,
        edit.at(part.site),
        over=over,
        metric=task.metric,
        progress=partly if progress else False,
        chunks=Chunks(memory),
    )
    return np.asarray(found.base)[:, None] - np.asarray(found.values)
