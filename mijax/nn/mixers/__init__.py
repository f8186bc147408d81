"""Mixers of tokens that keep a state of fixed size in place of all keys and values."""

from mijax.nn.mixers._conv import CausalConv as CausalConv
from mijax.nn.mixers._delta_net import GatedDeltaNet as GatedDeltaNet
from mijax.nn.mixers._hybrid import HybridBlock as HybridBlock
from mijax.nn.mixers._mamba import Mamba as Mamba
from mijax.nn.mixers._mamba2 import Mamba2 as Mamba2
from mijax.nn.mixers._mixer import AbstractMixer as AbstractMixer
from mijax.nn.mixers._mixer import MixerBlock as MixerBlock
from mijax.nn.mixers._unrolled import delta_attention as delta_attention
from mijax.nn.mixers._unrolled import ssm_attention as ssm_attention
