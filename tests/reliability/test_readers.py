"""A few damaged files of every format; `fuzz_readers.py` is the long form."""

import warnings

from reliability.fuzz_readers import fuzz
from reliability.reader_cases import CASES


def test_damaged_files_are_refused_or_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts, failures = fuzz(6 * len(CASES), 3, tmp_path, show=lambda text: None)
    assert not failures, failures[:3]
    assert sum(counts.values()) == 6 * len(CASES)
    refused = sum(n for (_, outcome), n in counts.items() if outcome == "refused")
    assert refused > 3 * len(CASES)
