"""Reading the residual stream in the vocabulary."""

from mijax.lens._direct import Direct as Direct
from mijax.lens._direct import direct_logit_attribution as direct_logit_attribution
from mijax.lens._logit_lens import Lens as Lens
from mijax.lens._logit_lens import logit_lens as logit_lens
