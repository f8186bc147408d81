"""Reading the residual stream in the vocabulary."""

from mijax.lens._composition import Composition as Composition
from mijax.lens._composition import RandomComposition as RandomComposition
from mijax.lens._composition import composition as composition
from mijax.lens._composition import random_composition as random_composition
from mijax.lens._direct import Direct as Direct
from mijax.lens._direct import direct_logit_attribution as direct_logit_attribution
from mijax.lens._effective_attention import effective_attention as effective_attention
from mijax.lens._eigenvalues import ov_eigenvalues as ov_eigenvalues
from mijax.lens._eigenvalues import positivity as positivity
from mijax.lens._eigenvalues import qk_eigenvalues as qk_eigenvalues
from mijax.lens._function import DirectTerms as DirectTerms
from mijax.lens._function import direct_attribution as direct_attribution
from mijax.lens._lens import AbstractLens as AbstractLens
from mijax.lens._lens import LogitLens as LogitLens
from mijax.lens._lens import RotatedLens as RotatedLens
from mijax.lens._logit_lens import logit_lens as logit_lens
from mijax.lens._path_expansion import Paths as Paths
from mijax.lens._path_expansion import path_expansion as path_expansion
from mijax.lens._read import next_tokens as next_tokens
from mijax.lens._read import read as read
from mijax.lens._reading import LensReading as LensReading
