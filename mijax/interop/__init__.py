"""Sites in models of other libraries, which are not rewritten."""

from mijax.interop._equinox import mark as mark
from mijax.interop._linen import LinenFunction as LinenFunction
from mijax.interop._linen import mark_linen as mark_linen
from mijax.interop._nnx import NnxFunction as NnxFunction
from mijax.interop._nnx import mark_nnx as mark_nnx
