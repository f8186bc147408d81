"""Probes: what can be read from activations, with controls."""

from mijax.probes._auroc import auroc as auroc
from mijax.probes._control import control_labels as control_labels
from mijax.probes._control import selectivity as selectivity
from mijax.probes._fit import fit as fit
from mijax.probes._frame import Frame as Frame
from mijax.probes._frame import Sequences as Sequences
from mijax.probes._hidden import Hidden as Hidden
from mijax.probes._lda import LDA as LDA
from mijax.probes._logistic import Logistic as Logistic
from mijax.probes._mdl import Codelength as Codelength
from mijax.probes._mdl import codelength as codelength
from mijax.probes._means import Means as Means
from mijax.probes._pooled import AttentionPooled as AttentionPooled
from mijax.probes._probe import AbstractLinear as AbstractLinear
from mijax.probes._probe import AbstractProbe as AbstractProbe
from mijax.probes._probe import Data as Data
from mijax.probes._probe import Linear as Linear
from mijax.probes._probe import Solved as Solved
from mijax.probes._record import Fit as Fit
from mijax.probes._record import Row as Row
from mijax.probes._ridge import Ridge as Ridge
