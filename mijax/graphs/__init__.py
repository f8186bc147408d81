"""Attribution graphs for replacement models."""

from mijax.graphs._attention import QK as QK
from mijax.graphs._attention import HeadLoadings as HeadLoadings
from mijax.graphs._attention import head_loadings as head_loadings
from mijax.graphs._attention import qk_attribution as qk_attribution
from mijax.graphs._attribute import TopLogits as TopLogits
from mijax.graphs._attribute import attribute as attribute
from mijax.graphs._graph import AttributionGraph as AttributionGraph
from mijax.graphs._groups import Shared as Shared
from mijax.graphs._groups import Supernodes as Supernodes
from mijax.graphs._groups import cluster as cluster
from mijax.graphs._groups import compare as compare
from mijax.graphs._groups import contract as contract
from mijax.graphs._influence import Quality as Quality
from mijax.graphs._intervene import FreezeAll as FreezeAll
from mijax.graphs._intervene import FreezeAttention as FreezeAttention
from mijax.graphs._intervene import Outcome as Outcome
from mijax.graphs._intervene import Verified as Verified
from mijax.graphs._intervene import intervene as intervene
from mijax.graphs._intervene import verify as verify
from mijax.graphs._json import load_graph as load_graph
from mijax.graphs._json import save_graph as save_graph
from mijax.graphs._replacement import Replacement as Replacement
