"""Folders of the Hugging Face hub, from its cache where they are there."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mijax._errors import LoadError, NetworkError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def download(
    hub_id: str, patterns: Sequence[str], *, files: str, revision: str | None = None
) -> Path:
    """Downloads files, or finds them in the cache.

    Args:
        hub_id: "org/name".
        patterns: which files.
        files: the same in words, for where there is no network.
        revision: branch, tag or commit; the main branch by default.

    Returns:
        The folder.

    Raises:
        LoadError: the hub has no such repository or revision, or it needs an
            agreement.
        NetworkError: the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415

    try:
        options: dict[str, Any] = {} if revision is None else {"revision": revision}
        found = snapshot_download(hub_id, allow_patterns=list(patterns), **options)
        return Path(found)
    except errors.RevisionNotFoundError as error:
        raise LoadError(
            f"'{hub_id}' has no revision '{revision}' on the hub. Give a branch, a tag "
            "or a commit of it."
        ) from error
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise LoadError(
            f"The hub gives no '{hub_id}': it does not exist, is private, or its "
            "licence was not accepted. Check the name, or run `hf auth login`."
        ) from error
    except Exception as error:  # those of its transport differ between versions
        raise NetworkError(
            f"Cannot download '{hub_id}' ({type(error).__name__}). Where there is a "
            f"network, put {files} of https://huggingface.co/{hub_id} into one folder, "
            "and load that folder."
        ) from error
