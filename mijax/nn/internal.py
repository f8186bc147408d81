"""Names of `mijax.nn` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.nn._mlp import AbstractMLP as AbstractMLP
from mijax.nn._mlp import Activation as Activation
from mijax.nn._readout import readout_of as readout_of
from mijax.nn._substitutes import with_gradient_of as with_gradient_of
