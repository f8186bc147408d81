"""Tokens, prompts with named places, templates and tasks."""

from mijax.data._ioi import ioi as ioi
from mijax.data._pairs import Pairs as Pairs
from mijax.data._prompts import Prompts as Prompts
from mijax.data._prompts import aligned as aligned
from mijax.data._template import fill as fill
from mijax.data._tokenizer import Tokenizer as Tokenizer
from mijax.data._tokenizer import read_tokenizer as read_tokenizer
