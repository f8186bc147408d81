"""Sites, activations, edits and the verbs on them."""

from mijax.core._edits import AbstractEdit as AbstractEdit
from mijax.core._edits import Add as Add
from mijax.core._edits import Mean as Mean
from mijax.core._edits import Noise as Noise
from mijax.core._edits import Patch as Patch
from mijax.core._edits import Project as Project
from mijax.core._edits import Scale as Scale
from mijax.core._edits import Set as Set
from mijax.core._edits import Zero as Zero
from mijax.core._edits import compose as compose
from mijax.core._edits import edit as edit
from mijax.core._model import AbstractBlock as AbstractBlock
from mijax.core._model import AbstractModel as AbstractModel
from mijax.core._rows import Past as Past
from mijax.core._rows import Place as Place
from mijax.core._sites import SITES as SITES
from mijax.core._sites import BlockSites as BlockSites
from mijax.core._sites import Site as Site
from mijax.core._sites import Sites as Sites
