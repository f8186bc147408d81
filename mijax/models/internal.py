"""Names of `mijax.models` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.models._families import FAMILIES as FAMILIES
from mijax.models._image_models import IMAGE_FAMILIES as IMAGE_FAMILIES
