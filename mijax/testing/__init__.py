"""Tiny models and ground truth to test methods on."""

from mijax.testing._features import PlantedFeatures as PlantedFeatures
from mijax.testing._features import unit_directions as unit_directions
from mijax.testing._planted import Planted as Planted
from mijax.testing._planted import planted as planted
from mijax.testing._siit import Accuracies as Accuracies
from mijax.testing._siit import Siit as Siit
from mijax.testing._siit import siit as siit
from mijax.testing._tiny import tiny_attention_only as tiny_attention_only
from mijax.testing._tiny import tiny_gpt2 as tiny_gpt2
from mijax.testing._tiny import tiny_llama as tiny_llama
from mijax.testing._tiny import tiny_parallel as tiny_parallel
from mijax.testing._tiny import tiny_sandwich as tiny_sandwich
from mijax.testing._tiny_llava import tiny_llava as tiny_llava
from mijax.testing._tracr import Compiled as Compiled
from mijax.testing._tracr import tracr as tracr
