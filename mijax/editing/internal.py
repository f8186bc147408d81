"""Names of `mijax.editing` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.editing._queries import Queries as Queries
