"""Sites in models of other libraries, which are not rewritten."""

from mijax.interop._checkpoint_names import NamedFunction as NamedFunction
from mijax.interop._checkpoint_names import mark_names as mark_names
from mijax.interop._equinox import mark as mark
from mijax.interop._haiku import HaikuFunction as HaikuFunction
from mijax.interop._haiku import mark_haiku as mark_haiku
from mijax.interop._linen import LinenFunction as LinenFunction
from mijax.interop._linen import mark_linen as mark_linen
from mijax.interop._nnx import NnxFunction as NnxFunction
from mijax.interop._nnx import mark_nnx as mark_nnx
from mijax.interop._penzai import PenzaiFunction as PenzaiFunction
from mijax.interop._penzai import mark_penzai as mark_penzai
