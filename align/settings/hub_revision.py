"""The setting that says which state of a model or data set of the Hugging Face hub is meant."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

COMMIT = re.compile(r"[0-9a-f]{40}")
_PART_OF_COMMIT = re.compile(r"[0-9a-fA-F]{7,40}")
_NAME = re.compile(r"[\w][\w./-]*")
WHERE_COMMITS_STAND = "on its page of the hub: Files and versions, History"


class HubRepository(NamedTuple):
    """A repository of the hub: what it holds and its id, OWNER/NAME."""

    kind: Literal["model", "dataset"]
    name: str


def check_hub_revision(revision: str) -> str:
    """Returns a revision unchanged. Raises ValueError for what is neither a commit nor the name of a branch or tag."""
    if COMMIT.fullmatch(revision):
        return revision
    if _PART_OF_COMMIT.fullmatch(revision):
        raise ValueError(
            f"'{revision}' is a part of a commit's name, or not in small letters; give all 40 hex digits "
            f"({WHERE_COMMITS_STAND})"
        )
    if not _NAME.fullmatch(revision) or ".." in revision or revision.endswith(("/", ".")):
        raise ValueError(
            f"{revision!r} is no revision: give a commit's 40 hex digits ({WHERE_COMMITS_STAND}), or a branch or tag "
            "such as main"
        )
    return revision


HubRevision = Annotated[str, Field(min_length=1), AfterValidator(check_hub_revision)]
