"""Token mixers with a fixed-size state instead of keys and values for all tokens."""

from mijax.nn.mixers._conv import CausalConv as CausalConv
from mijax.nn.mixers._delta_net import GatedDeltaNet as GatedDeltaNet
from mijax.nn.mixers._hybrid import HybridBlock as HybridBlock
from mijax.nn.mixers._mamba import Mamba as Mamba
from mijax.nn.mixers._mamba2 import Mamba2 as Mamba2
from mijax.nn.mixers._mixer import AbstractMixer as AbstractMixer
from mijax.nn.mixers._mixer import MixerBlock as MixerBlock
from mijax.nn.mixers._unrolled import delta_attention as delta_attention
from mijax.nn.mixers._unrolled import ssm_attention as ssm_attention
