"""Causal abstraction: whether a model computes what a small program computes."""

from mijax.causal._accuracy import agreement as agreement
from mijax.causal._accuracy import iia as iia
from mijax.causal._align import Alignment as Alignment
from mijax.causal._align import Search as Search
from mijax.causal._align import align as align
from mijax.causal._counterfactuals import Counterfactuals as Counterfactuals
from mijax.causal._counterfactuals import Drawn as Drawn
from mijax.causal._localist import blocks as blocks
from mijax.causal._localist import closest_neurons as closest_neurons
from mijax.causal._localist import stated as stated
from mijax.causal._methods import DAS as DAS
from mijax.causal._methods import DBM as DBM
from mijax.causal._methods import AbstractMethod as AbstractMethod
from mijax.causal._methods import BoundlessDAS as BoundlessDAS
from mijax.causal._mlp import MLP as MLP
from mijax.causal._program import CausalModel as CausalModel
from mijax.causal._swap import Subspaces as Subspaces
from mijax.causal._swap import Swap as Swap
from mijax.causal._swap import activation as activation
from mijax.causal._tail import Prefix as Prefix
from mijax.causal._tail import Tail as Tail
from mijax.causal._tail import prefix as prefix
