"""One loop for long work: what a file holds is not run again."""

import numpy as np
import pytest

import mijax
from mijax.core._jobs import Piece, run_pieces
from mijax.core._journal import Journal


class Stopped(Exception):
    """Raised in the middle of a job."""


def pieces(ran, together, stop=None):
    """Ten chunks of two units each, so many in a piece."""

    def piece(first):
        chunks = range(first, min(first + together, 10))

        def call():
            if stop in chunks:
                raise Stopped
            ran.extend(chunks)
            return np.array(chunks)

        def store(out, values):
            values[out] = 3 * out

        return Piece(2 * len(chunks), call, store, len(chunks))

    return [piece(first) for first in range(0, 10, together)]


@pytest.mark.parametrize("together", [1, 3, 4])
@pytest.mark.parametrize("before", [1, 3, 4])
def test_a_job_goes_on_with_another_number_of_devices(
    before, together, tmp_path, monkeypatch
):
    """A file counts chunks; pieces that it holds in part run again as a whole."""
    monkeypatch.setattr(mijax.core._journal, "SECONDS_BETWEEN_SAVES", 0.0)
    path, values = tmp_path / "job.npz", np.zeros(10)
    with pytest.raises(Stopped):
        run_pieces(pieces([], before, stop=7), values, "job", False, path)
    with Journal(path, "job") as journal:
        journal.load(np.zeros(10))
        done = journal.done
    assert 0 < done < 8
    ran, told, values = [], [], np.zeros(10)
    report = lambda *progress: told.append(progress)  # noqa: E731
    run_pieces(pieces(ran, together), values, "job", report, path)
    np.testing.assert_array_equal(values, 3 * np.arange(10))
    assert ran == list(range(done // together * together, 10))
    assert told[-1] == (20, 20)
