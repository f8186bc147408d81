"""Sparse dictionaries: SAEs, transcoders, crosscoders, in every architecture."""

from mijax.dictionaries._architecture import (
    AbstractArchitecture as AbstractArchitecture,
)
from mijax.dictionaries._architecture import Given as Given
from mijax.dictionaries._architecture import Outcome as Outcome
from mijax.dictionaries._batch_topk import BatchTopK as BatchTopK
from mijax.dictionaries._dictionary import Dictionary as Dictionary
from mijax.dictionaries._dictionary import untrained as untrained
from mijax.dictionaries._gated import Gated as Gated
from mijax.dictionaries._jump_relu import JumpReLU as JumpReLU
from mijax.dictionaries._matryoshka import Matryoshka as Matryoshka
from mijax.dictionaries._relu import ReLU as ReLU
from mijax.dictionaries._topk import TopK as TopK
from mijax.dictionaries._training import Training as Training
from mijax.dictionaries._training import train as train
from mijax.dictionaries._wiring import SAE as SAE
from mijax.dictionaries._wiring import AbstractWiring as AbstractWiring
from mijax.dictionaries._wiring import Crosscoder as Crosscoder
from mijax.dictionaries._wiring import CrossLayer as CrossLayer
from mijax.dictionaries._wiring import Transcoder as Transcoder
from mijax.dictionaries._wiring import Weights as Weights
