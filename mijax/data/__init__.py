"""Tokens, prompts with named places, templates and tasks."""

from mijax.data._addition import addition as addition
from mijax.data._agreement import subject_verb_agreement as subject_verb_agreement
from mijax.data._docstring import docstring as docstring
from mijax.data._greater_than import greater_than as greater_than
from mijax.data._induction import induction as induction
from mijax.data._ioi import ioi as ioi
from mijax.data._pairs import Pairs as Pairs
from mijax.data._prompts import Prompts as Prompts
from mijax.data._prompts import aligned as aligned
from mijax.data._pronouns import gendered_pronouns as gendered_pronouns
from mijax.data._source import AbstractSource as AbstractSource
from mijax.data._template import fill as fill
from mijax.data._tokenizer import Tokenizer as Tokenizer
from mijax.data._tokenizer import read_tokenizer as read_tokenizer
