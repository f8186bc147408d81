"""Layers that apply edits and return their activations."""

from mijax.nn._attention import Attention as Attention
from mijax.nn._basic import GELU as GELU
from mijax.nn._basic import Embedding as Embedding
from mijax.nn._basic import Identity as Identity
from mijax.nn._basic import LayerNorm as LayerNorm
from mijax.nn._basic import Product as Product
from mijax.nn._basic import ReLU as ReLU
from mijax.nn._basic import RMSNorm as RMSNorm
from mijax.nn._basic import Rotary as Rotary
from mijax.nn._basic import SiLU as SiLU
from mijax.nn._basic import Softmax as Softmax
from mijax.nn._basic import Unembedding as Unembedding
from mijax.nn._basic import scaled_like as scaled_like
from mijax.nn._blocks import AttentionBlock as AttentionBlock
from mijax.nn._blocks import Block as Block
from mijax.nn._blocks import ParallelBlock as ParallelBlock
from mijax.nn._frames import FRAMES as FRAMES
from mijax.nn._frames import centre_unembedding as centre_unembedding
from mijax.nn._frames import centre_writing as centre_writing
from mijax.nn._frames import fold_norm as fold_norm
from mijax.nn._frames import fold_value_biases as fold_value_biases
from mijax.nn._mlp import MLP as MLP
from mijax.nn._mlp import GatedMLP as GatedMLP
from mijax.nn._transformer import Transformer as Transformer
