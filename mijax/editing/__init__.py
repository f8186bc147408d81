"""Editing: weights changed as values, facts rewritten, concepts erased."""

from mijax.editing._delta import AbstractDelta as AbstractDelta
from mijax.editing._delta import Dense as Dense
from mijax.editing._delta import LowRank as LowRank
from mijax.editing._file import load as load
from mijax.editing._file import save as save
from mijax.editing._weight_edit import Change as Change
from mijax.editing._weight_edit import WeightEdit as WeightEdit
from mijax.editing._weights import weight_names as weight_names
