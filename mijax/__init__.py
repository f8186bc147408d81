"""mijax: mechanistic interpretability as calculus and substitution on trees.

    logits, acts = model(tokens, edits)

Activations come out and edits go in as trees of the same shape. See `run`, `capture`,
`gradients`, `sweep` and `generate`; `mijax.models.load` gives a pretrained model.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mijax._errors import MijaxError as MijaxError
from mijax.core import Add as Add
from mijax.core import Apply as Apply
from mijax.core import Chunks as Chunks
from mijax.core import Interval as Interval
from mijax.core import Mean as Mean
from mijax.core import Noise as Noise
from mijax.core import Patch as Patch
from mijax.core import PerPrompt as PerPrompt
from mijax.core import Project as Project
from mijax.core import Scale as Scale
from mijax.core import Set as Set
from mijax.core import Site as Site
from mijax.core import Sites as Sites
from mijax.core import Sweep as Sweep
from mijax.core import TopTokens as TopTokens
from mijax.core import Zero as Zero
from mijax.core import accuracy as accuracy
from mijax.core import capture as capture
from mijax.core import compilation_cache as compilation_cache
from mijax.core import compose as compose
from mijax.core import cross_entropy as cross_entropy
from mijax.core import edited as edited
from mijax.core import generate as generate
from mijax.core import gradients as gradients
from mijax.core import harvest as harvest
from mijax.core import interval as interval
from mijax.core import kl as kl
from mijax.core import l2 as l2
from mijax.core import logit_difference as logit_difference
from mijax.core import model as model
from mijax.core import negative as negative
from mijax.core import probability as probability
from mijax.core import probability_difference as probability_difference
from mijax.core import recovered as recovered
from mijax.core import run as run
from mijax.core import site as site
from mijax.core import site_metric as site_metric
from mijax.core import sites as sites
from mijax.core import sweep as sweep
from mijax.core import top_tokens as top_tokens

if TYPE_CHECKING:
    from mijax import attribution as attribution
    from mijax import causal as causal
    from mijax import circuits as circuits
    from mijax import core as core
    from mijax import data as data
    from mijax import dictionaries as dictionaries
    from mijax import editing as editing
    from mijax import experiment as experiment
    from mijax import features as features
    from mijax import graphs as graphs
    from mijax import interop as interop
    from mijax import io as io
    from mijax import lens as lens
    from mijax import models as models
    from mijax import nn as nn
    from mijax import probes as probes
    from mijax import steering as steering
    from mijax import testing as testing
    from mijax import train as train
    from mijax import viz as viz

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports a subpackage on first use, so `import mijax` stays quick."""
    packages = (
        "attribution causal circuits core data dictionaries editing experiment "
        "features graphs io interop lens models nn probes steering testing train viz"
    )
    if name in packages.split():
        return importlib.import_module(f"mijax.{name}")
    raise AttributeError(f"module 'mijax' has no attribute {name!r}")
