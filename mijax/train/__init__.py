"""Training: one loop, exact resume, meshes, sinks."""

from mijax.train._fit import fit as fit
from mijax.train._mesh import Step as Step
from mijax.train._mesh import mesh as mesh
from mijax.train._objective import AbstractObjective as AbstractObjective
from mijax.train._read_checkpoint import Checkpoint as Checkpoint
from mijax.train._read_checkpoint import (
    is_training_checkpoint as is_training_checkpoint,
)
from mijax.train._read_checkpoint import read_checkpoint as read_checkpoint
from mijax.train._schedule import warmed as warmed
from mijax.train._sinks import AbstractSink as AbstractSink
from mijax.train._sinks import Jsonl as Jsonl
from mijax.train._sinks import Memory as Memory
from mijax.train._sinks import TensorBoard as TensorBoard
from mijax.train._sinks import Terminal as Terminal
from mijax.train._state import State as State
