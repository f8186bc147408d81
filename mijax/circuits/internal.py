"""Names of `mijax.circuits` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.circuits.forward._graph import EDGE as EDGE
