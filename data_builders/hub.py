"""Reads the rows of a data set on the Hugging Face hub, at a fixed revision.

*Untested on the hub*: the tests serve a hub of their own to the library.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Row
from qwen_align.align.settings.hub_revision import COMMIT, HubRepository, HubRevision
from qwen_align.data_builders.bad_row_errors import Reject, reject_rows_with_nul
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.csv_parquet_reader import remove_null_padding
from qwen_align.data_builders.row_conversion import Conversion
from qwen_align.data_builders.sieve import Drops, Sources

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def _check_dataset_name(dataset: str) -> str:
    """Returns the name of a data set unchanged. Raises ValueError for a name that is impossible on the hub."""
    if not _NAME.fullmatch(dataset):
        raise ValueError(f"'{dataset}' is no data set of the hub: owner/name; a file of your own is kind: local_file")
    return dataset


class Hub(Conversion):
    """A builder that reads a split of a Hugging Face data set without running any code of the data set.

    See Conversion for what rows become. The commit is in the stage's key, also where a branch or tag is named. With
    `streaming` rows are read as they arrive, without it the split is downloaded
    and cached first.
    """

    kind: Literal["hub"] = "hub"
    dataset: Annotated[str, AfterValidator(_check_dataset_name)] = Field(
        description="data set's name on the hub, owner/name"
    )
    name: str | None = Field(default=None, min_length=1, description="the data set's configuration")
    split: str = Field(default="train", min_length=1, description="split of the data set")
    revision: HubRevision = Field(
        description="commit of the data set, 40 hex digits (on its page: Files and versions, History), or a branch or "
        "tag, whose commit the run finds once and keeps"
    )
    streaming: bool = Field(
        default=True, description="read rows as they arrive; false: download and cache the split first"
    )

    @property
    def hub_repository(self) -> HubRepository:
        """Returns the data set's repository on the hub."""
        return HubRepository("dataset", self.dataset)

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the converted rows of the data set's split in order.

        Raises DataError if the hub cannot be reached or does not have it, RowError naming the row for the first that
        is wrong, unless `on_bad_row` is drop.
        """
        return self.build_with_report(Report(), drops)

    def build_with_report(self, report: Report, drops: Drops) -> Iterator[Row]:
        """Yields the rows as `build` does, and fills the conversion report as they are read."""
        return self.convert_rows(self._read_rows, self.dataset, drops, report)

    @property
    def _location(self) -> str:
        """Returns data set, configuration, revision and split as one text for error messages."""
        config = f" ({self.name})" if self.name else ""
        return f"{self.dataset}{config} at {self.revision}, {self.split}"

    def _read_rows(self, reject: Reject) -> Iterator[tuple[str, Any]]:
        """Yields each row of the data set's split with its location. Raises DataError where the hub cannot be read."""
        try:
            rows = map(remove_null_padding, self._load_rows())
            yield from reject_rows_with_nul(rows, lambda number: f"{self._location}: row {number}", reject)
        except DataError:
            raise
        # The hub's errors are of these kinds: no connection, no such data set or revision, no such configuration or
        # split, a file that is damaged or of another form than its data set's card says.
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{self._location}: {self._describe_error(error)}") from None

    def _load_rows(self) -> Iterable[dict[str, Any]]:
        """Loads the data set's split with the `datasets` library.

        Raises DataError if the library offers another revision.
        """
        from datasets import load_dataset_builder  # imported late: it takes seconds, and only the hub needs it

        builder = load_dataset_builder(self.dataset, self.name, revision=self.revision)
        # Where it cannot get the revision the library takes whichever it has cached, and only logs it.
        is_cached = type(builder).__module__.startswith("datasets.packaged_modules.cache")
        is_wrong = builder.hash != self.revision if COMMIT.fullmatch(self.revision) else is_cached
        if is_wrong:
            raise DataError(
                f"{self._location}: the hub cannot be reached or has no such revision; the library offers "
                f"{builder.hash}, which is not what the recipe names"
            )
        if self.streaming:
            streamed: Iterable[dict[str, Any]] = builder.as_streaming_dataset(split=self.split)
            return streamed
        builder.download_and_prepare()
        prepared: Iterable[dict[str, Any]] = builder.as_dataset(split=self.split)
        return prepared

    def _describe_error(self, error: Exception) -> str:
        """Describes an error of the `datasets` library in one line, with advice for the user."""
        first_line = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, ConnectionError):
            return (
                f"the hub cannot be reached ({first_line}); connect, unset HF_HUB_OFFLINE, or save the rows where "
                "there is a connection and read them as kind: local_file"
            )
        return f"cannot be read: {first_line}"
