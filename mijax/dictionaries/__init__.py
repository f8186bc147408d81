"""Sparse dictionaries: SAEs, transcoders, crosscoders, in every architecture."""

from mijax.dictionaries._attribution import LatentScores as LatentScores
from mijax.dictionaries._attribution import attribute_latents as attribute_latents
from mijax.dictionaries._continue import from_checkpoint as from_checkpoint
from mijax.dictionaries._dictionary import Dictionary as Dictionary
from mijax.dictionaries._dictionary import untrained as untrained
from mijax.dictionaries._direct import DirectLatents as DirectLatents
from mijax.dictionaries._direct import (
    direct_latent_attribution as direct_latent_attribution,
)
from mijax.dictionaries._direct import logit_weights as logit_weights
from mijax.dictionaries._features import Excerpts as Excerpts
from mijax.dictionaries._features import Features as Features
from mijax.dictionaries._features import Ranked as Ranked
from mijax.dictionaries._features import features as features
from mijax.dictionaries._gather import Keep as Keep
from mijax.dictionaries._latents import Largest as Largest
from mijax.dictionaries._latents import Pooled as Pooled
from mijax.dictionaries._latents import direction as direction
from mijax.dictionaries._latents import latents as latents
from mijax.dictionaries._latents import pooled as pooled
from mijax.dictionaries._latents import top_latents as top_latents
from mijax.dictionaries._load import load as load
from mijax.dictionaries._load import save as save
from mijax.dictionaries._replace import replace_mlps as replace_mlps
from mijax.dictionaries._splice import OnLatents as OnLatents
from mijax.dictionaries._splice import Splice as Splice
from mijax.dictionaries._splice import hold as hold
from mijax.dictionaries._splice import scale as scale
from mijax.dictionaries._splice import where_tokens as where_tokens
from mijax.dictionaries._training import Training as Training
from mijax.dictionaries._training import train as train
from mijax.dictionaries._wiring import SAE as SAE
from mijax.dictionaries._wiring import AbstractWiring as AbstractWiring
from mijax.dictionaries._wiring import Crosscoder as Crosscoder
from mijax.dictionaries._wiring import CrossLayer as CrossLayer
from mijax.dictionaries._wiring import Transcoder as Transcoder
from mijax.dictionaries._wiring import Weights as Weights
from mijax.dictionaries.architectures._architecture import (
    AbstractArchitecture as AbstractArchitecture,
)
from mijax.dictionaries.architectures._architecture import Given as Given
from mijax.dictionaries.architectures._architecture import Outcome as Outcome
from mijax.dictionaries.architectures._batch_topk import BatchTopK as BatchTopK
from mijax.dictionaries.architectures._gated import Gated as Gated
from mijax.dictionaries.architectures._jump_relu import JumpReLU as JumpReLU
from mijax.dictionaries.architectures._matryoshka import Matryoshka as Matryoshka
from mijax.dictionaries.architectures._relu import ReLU as ReLU
from mijax.dictionaries.architectures._topk import TopK as TopK
from mijax.dictionaries.evaluation._absorption import Absorption as Absorption
from mijax.dictionaries.evaluation._absorption import absorption as absorption
from mijax.dictionaries.evaluation._concepts import Perturbation as Perturbation
from mijax.dictionaries.evaluation._concepts import Unbiased as Unbiased
from mijax.dictionaries.evaluation._concepts import perturb as perturb
from mijax.dictionaries.evaluation._concepts import unbias as unbias
from mijax.dictionaries.evaluation._evaluate import Evaluation as Evaluation
from mijax.dictionaries.evaluation._evaluate import evaluate as evaluate
from mijax.dictionaries.evaluation._recovered import Recovered as Recovered
from mijax.dictionaries.evaluation._recovered import recovered as recovered
from mijax.dictionaries.evaluation._similarity import Similarity as Similarity
from mijax.dictionaries.evaluation._similarity import similarity as similarity
from mijax.dictionaries.evaluation._sparse_probing import SparseProbes as SparseProbes
from mijax.dictionaries.evaluation._sparse_probing import sparse_probe as sparse_probe
from mijax.dictionaries.formats._stored import Stored as Stored
from mijax.dictionaries.formats._stored import normalise as normalise
