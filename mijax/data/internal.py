"""Names of `mijax.data` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.data._permute import permuted_on_device as permuted_on_device
from mijax.data.activations._activations import reader_of as reader_of
from mijax.data.activations._reading import Reader as Reader
from mijax.data.text._stream import valid as valid
