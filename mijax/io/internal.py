"""Names of `mijax.io` that its sister packages use and users should not.

They can change in any version.
"""

from mijax.io._checkpoint import fill_checkpoint as fill_checkpoint
from mijax.io._checkpoint import flatten as flatten
from mijax.io._checkpoint import name_of as name_of
from mijax.io._checkpoint import one_line as one_line
from mijax.io._digest import file_digest as file_digest
from mijax.io._durable import ADVICE as ADVICE
from mijax.io._durable import named as named
from mijax.io._hub import HUB_ID as HUB_ID
from mijax.io._hub import download as download
from mijax.io._json import parse_json as parse_json
from mijax.io._json import spelled_constant as spelled_constant
from mijax.io._json import unique as unique
from mijax.io._manifest import foreign as foreign
from mijax.io._record import Bytes as Bytes
from mijax.io._record import keys_of as keys_of
from mijax.io._regions import check_weights as check_weights
from mijax.io._torch_file import check_entry as check_entry
