"""Experiments: strict configs, resumable runs, records and reports."""

from mijax.experiment._config import Config as Config
from mijax.experiment._config import Expected as Expected
from mijax.experiment._discover import Entry as Entry
from mijax.experiment._discover import entries as entries
from mijax.experiment._observer import Number as Number
from mijax.experiment._observer import Observer as Observer
from mijax.experiment._observer import Progress as Progress
from mijax.experiment._observer import Silent as Silent
from mijax.experiment._observer import Table as Table
from mijax.experiment._observer import cell_text as cell_text
from mijax.experiment._overrides import option_help as option_help
from mijax.experiment._plan import Plan as Plan
from mijax.experiment._plan import load as load
from mijax.experiment._reproductions import Reproduction as Reproduction
from mijax.experiment._reproductions import of_size as of_size
from mijax.experiment._reproductions import reproduce as reproduce
from mijax.experiment._reproductions import reproductions_page as reproductions_page
from mijax.experiment._result import Result as Result
from mijax.experiment._result import read_result as read_result
from mijax.experiment._run import Run as Run
from mijax.experiment._runner import execute as execute
from mijax.experiment._verdict import Verdict as Verdict
from mijax.experiment._verdict import judge as judge
