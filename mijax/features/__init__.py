"""How features lie in a model: toy models of superposition, geometry, phases."""

from mijax.features._fourier import best_frequency as best_frequency
from mijax.features._fourier import fourier_basis as fourier_basis
from mijax.features._fourier import fourier_power as fourier_power
from mijax.features._fourier import keep_sums as keep_sums
from mijax.features._fourier import wave_logits as wave_logits
from mijax.features._geometry import FRACTIONS as FRACTIONS
from mijax.features._geometry import Lines as Lines
from mijax.features._geometry import count_lines as count_lines
from mijax.features._geometry import dimensionality as dimensionality
from mijax.features._geometry import dimensions_per_feature as dimensions_per_feature
from mijax.features._phases import Phase as Phase
from mijax.features._phases import absent_loss as absent_loss
from mijax.features._phases import antipodal_loss as antipodal_loss
from mijax.features._phases import phase_of as phase_of
from mijax.features._phases import phase_theory as phase_theory
from mijax.features._sparse import SparseFeatures as SparseFeatures
from mijax.features._squeeze import Squeeze as Squeeze
from mijax.features._squeeze import squeeze as squeeze
from mijax.features._toy import ToyModel as ToyModel
from mijax.features._toy import toy_losses as toy_losses
