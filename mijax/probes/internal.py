"""Names of `mijax.probes` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.probes._frame import per_feature as per_feature
from mijax.probes._probe import Data as Data
