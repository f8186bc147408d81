"""Families of models, and loading them.

Adding a family is one file and one line. The file (`_qwen3.py` and `_gpt2.py` are good
ones to copy):

1. a spec, a frozen dataclass of the sizes, with `layers`;
2. `init(spec, key, dtype)`, which builds the `Transformer` from the layers of
   `mijax.nn`. Every shape is said here, once: loading, saving and tests take shapes
   from `jax.eval_shape(init)`. Another order of operations is another block class;
3. the keys of its config.json (a `HubConfig`): those read into the spec, those that
   change the computation with the values that are supported, those that change nothing.
   Any other key is refused;
4. a `Table` of `Rule`s: name and shape of each tensor in the file, and for each leaf
   that it fills, how. Every tensor has to be used, every leaf filled;
5. presets, and the `Family` record that names all of this.

The line puts the record into `FAMILIES` in `_families.py`. Then compare logits with the
reference implementation on a tiny random model whose norms and biases are not trivial.
"""

from mijax.models._adapter import Adapter as Adapter
from mijax.models._adapter import LowRank as LowRank
from mijax.models._adapter import read_adapter as read_adapter
from mijax.models._albert import AlbertSpec as AlbertSpec
from mijax.models._attention_only import AttentionOnlySpec as AttentionOnlySpec
from mijax.models._audio_input import AudioInput as AudioInput
from mijax.models._bert import BertSpec as BertSpec
from mijax.models._bloom import BloomSpec as BloomSpec
from mijax.models._cifar_resnet import CifarResNet as CifarResNet
from mijax.models._cifar_resnet import CifarResNetSpec as CifarResNetSpec
from mijax.models._clip import CLIP as CLIP
from mijax.models._clip import CLIPSpec as CLIPSpec
from mijax.models._clip import CLIPTextSpec as CLIPTextSpec
from mijax.models._clip import clip_spec as clip_spec
from mijax.models._coco import COCO_NAMES as COCO_NAMES
from mijax.models._config import HubConfig as HubConfig
from mijax.models._config import read_hub_config as read_hub_config
from mijax.models._convnext import ConvNeXt as ConvNeXt
from mijax.models._convnext import ConvNeXtSpec as ConvNeXtSpec
from mijax.models._deepseek_v3 import DeepseekV3Spec as DeepseekV3Spec
from mijax.models._detections import Detections as Detections
from mijax.models._detections import detections as detections
from mijax.models._distilbert import DistilBertSpec as DistilBertSpec
from mijax.models._efficientnet_lite import EfficientNetLite as EfficientNetLite
from mijax.models._efficientnet_lite import (
    EfficientNetLiteSpec as EfficientNetLiteSpec,
)
from mijax.models._falcon import FalconSpec as FalconSpec
from mijax.models._families import init as init
from mijax.models._families import preset as preset
from mijax.models._families import presets as presets
from mijax.models._family import Family as Family
from mijax.models._family import Preset as Preset
from mijax.models._family import Rule as Rule
from mijax.models._family import Table as Table
from mijax.models._gemma import GemmaSpec as GemmaSpec
from mijax.models._gemma2 import Gemma2Spec as Gemma2Spec
from mijax.models._gemma3 import Gemma3Spec as Gemma3Spec
from mijax.models._gemma3_images import Gemma3ImagesSpec as Gemma3ImagesSpec
from mijax.models._gemma3_images import PoolSpec as PoolSpec
from mijax.models._gpt2 import GPT2Spec as GPT2Spec
from mijax.models._gpt_neo import GPTNeoSpec as GPTNeoSpec
from mijax.models._gpt_neox import GPTNeoXSpec as GPTNeoXSpec
from mijax.models._gpt_oss import GptOssSpec as GptOssSpec
from mijax.models._gptj import GPTJSpec as GPTJSpec
from mijax.models._granite import GraniteSpec as GraniteSpec
from mijax.models._idefics3 import Idefics3Spec as Idefics3Spec
from mijax.models._idefics3 import ShuffleSpec as ShuffleSpec
from mijax.models._image_input import ImageInput as ImageInput
from mijax.models._image_models import ImageModel as ImageModel
from mijax.models._image_models import image_presets as image_presets
from mijax.models._image_models import init_image_model as init_image_model
from mijax.models._image_models import load_image_model as load_image_model
from mijax.models._image_text import ImageText as ImageText
from mijax.models._inception_v3 import InceptionV3 as InceptionV3
from mijax.models._inception_v3 import InceptionV3Spec as InceptionV3Spec
from mijax.models._letterbox import Letterbox as Letterbox
from mijax.models._llama_spec import LlamaSpec as LlamaSpec
from mijax.models._llava import LlavaSpec as LlavaSpec
from mijax.models._llava import ProjectorSpec as ProjectorSpec
from mijax.models._load import Loaded as Loaded
from mijax.models._load import load as load
from mijax.models._mamba import MambaSpec as MambaSpec
from mijax.models._mamba2 import Mamba2Spec as Mamba2Spec
from mijax.models._mistral import MistralSpec as MistralSpec
from mijax.models._mixtral import MixtralSpec as MixtralSpec
from mijax.models._mobilenet_v2 import MobileNetV2 as MobileNetV2
from mijax.models._mobilenet_v2 import MobileNetV2Spec as MobileNetV2Spec
from mijax.models._modernbert import ModernBertSpec as ModernBertSpec
from mijax.models._native import build as build
from mijax.models._native import describe as describe
from mijax.models._native import save as save
from mijax.models._olmo2 import Olmo2Spec as Olmo2Spec
from mijax.models._olmo3 import Olmo3Spec as Olmo3Spec
from mijax.models._olmoe import OlmoeSpec as OlmoeSpec
from mijax.models._opt import OPTSpec as OPTSpec
from mijax.models._parity import Reference as Reference
from mijax.models._parity import SiteDifference as SiteDifference
from mijax.models._parity import compare as compare
from mijax.models._phi import PhiSpec as PhiSpec
from mijax.models._phi3 import Phi3Spec as Phi3Spec
from mijax.models._qwen2 import Qwen2Spec as Qwen2Spec
from mijax.models._qwen3 import Qwen3Spec as Qwen3Spec
from mijax.models._qwen3_5 import Qwen35Spec as Qwen35Spec
from mijax.models._qwen3_moe import Qwen3MoeSpec as Qwen3MoeSpec
from mijax.models._qwen3_next import Qwen3NextSpec as Qwen3NextSpec
from mijax.models._resnet import ResNet as ResNet
from mijax.models._resnet import ResNetSpec as ResNetSpec
from mijax.models._revisions import Revisions as Revisions
from mijax.models._revisions import load_many as load_many
from mijax.models._roberta import RobertaSpec as RobertaSpec
from mijax.models._sharding import Sharding as Sharding
from mijax.models._sharding import shard as shard
from mijax.models._siglip import SigLIP as SigLIP
from mijax.models._siglip import SigLIPSpec as SigLIPSpec
from mijax.models._siglip import SigLIPTextSpec as SigLIPTextSpec
from mijax.models._siglip import siglip_spec as siglip_spec
from mijax.models._smollm3 import SmolLM3Spec as SmolLM3Spec
from mijax.models._suppression import non_max_suppression as non_max_suppression
from mijax.models._t5 import T5Spec as T5Spec
from mijax.models._tiles import TiledImage as TiledImage
from mijax.models._towers import ZeroShot as ZeroShot
from mijax.models._vision_language import VisionLanguage as VisionLanguage
from mijax.models._vit import VisionTransformer as VisionTransformer
from mijax.models._vit import ViTSpec as ViTSpec
from mijax.models._whisper import WhisperSpec as WhisperSpec
from mijax.models._yolo11 import Yolo11 as Yolo11
from mijax.models._yolo11 import Yolo11Spec as Yolo11Spec
from mijax.models._yolo26 import DetectorOutput as DetectorOutput
from mijax.models._yolo26 import Yolo26 as Yolo26
from mijax.models._yolo26 import Yolo26Spec as Yolo26Spec
