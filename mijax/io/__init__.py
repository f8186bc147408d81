"""Bytes to trees: weight files, checkpoints, durable writes, locks, digests."""

from mijax.io._checkpoint import checkpoint_metadata as checkpoint_metadata
from mijax.io._checkpoint import is_checkpoint as is_checkpoint
from mijax.io._checkpoint import load_checkpoint as load_checkpoint
from mijax.io._checkpoint import save_checkpoint as save_checkpoint
from mijax.io._digest import digest as digest
from mijax.io._durable import publish as publish
from mijax.io._durable import replace_file as replace_file
from mijax.io._durable import replace_folder as replace_folder
from mijax.io._flax import FlaxTensors as FlaxTensors
from mijax.io._gguf import Gguf as Gguf
from mijax.io._json import read_json as read_json
from mijax.io._lock import locked as locked
from mijax.io._manifest import check_files as check_files
from mijax.io._record import Index as Index
from mijax.io._record import Indices as Indices
from mijax.io._record import Key as Key
from mijax.io._record import NonNegative as NonNegative
from mijax.io._record import Only as Only
from mijax.io._record import Positive as Positive
from mijax.io._record import Size as Size
from mijax.io._record import read_record as read_record
from mijax.io._safetensors import SafeTensors as SafeTensors
from mijax.io._safetensors import Shards as Shards
from mijax.io._safetensors import save_safetensors as save_safetensors
from mijax.io._tensors import Tensors as Tensors
