"""Defines the rows of local decoding, one a completion, and splits them into micro-batches that fit the cache."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from qwen_align.align.generation.engine import Request

# A completion is expected to grow to at least this length, and to twice what it has: a guess that is at most twice too
# large for most and lets a row be interrupted a logarithm of its length times. Ours; Qwen3's answers without thinking
# are mostly shorter. No less than a block of columns, which is what the cache begins with.
EXPECTED_TOKENS = 1024


class MadeTokens(NamedTuple):
    """The tokens that a completion has so far, with their log-probs before and after top-k, top-p and min-p."""

    token_ids: list[int]
    logps: list[float]
    sampled_logps: list[float]


NOTHING = MadeTokens([], [], [])


class DecodingRow(NamedTuple):
    """One completion that is to be decoded: its request, its sample number and what an interrupted one has so far."""

    request: Request
    sample: int
    made: MadeTokens = NOTHING

    @property
    def prefix_ids(self) -> list[int]:
        """Returns the tokens that decoding goes on from: the prompt and what is made."""
        return self.request.prompt_ids + self.made.token_ids if self.made.token_ids else self.request.prompt_ids

    @property
    def n_prefix(self) -> int:
        return len(self.request.prompt_ids) + len(self.made.token_ids)

    @property
    def max_tokens(self) -> int:
        """Returns the number of tokens that may still be made."""
        return self.request.sampling.max_tokens - len(self.made.token_ids)

    @property
    def expected_tokens(self) -> int:
        """Returns the number of tokens that room in the cache is kept for when decoding begins."""
        return min(self.max_tokens, max(EXPECTED_TOKENS, len(self.made.token_ids)))

    @property
    def sampling_key(self) -> tuple[float, float, int, float]:
        """Returns the settings that the row's tokens are sampled by.

        Rows sampled in one call share them.
        """
        sampling = self.request.sampling
        return sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p

    def add_tokens(self, more: MadeTokens) -> "DecodingRow":
        """Returns the row with more tokens made."""
        had = self.made
        made = MadeTokens(
            had.token_ids + more.token_ids, had.logps + more.logps, had.sampled_logps + more.sampled_logps
        )
        return self._replace(made=made)


def list_rows(requests: Sequence[Request]) -> list[DecodingRow]:
    """Returns one row for each completion that the requests ask for."""
    return [DecodingRow(request, sample) for request in requests for sample in request.sample_numbers]


def count_cache_columns(n_prefix: int, max_tokens: int) -> int:
    """Counts the key-value cache columns that a prefix and its continuation need.

    The last token sampled is never an input.
    """
    return n_prefix + max_tokens - 1


def plan_batches(rows: Sequence[DecodingRow], *, max_rows: int, max_cached_tokens: int) -> list[list[DecodingRow]]:
    """Splits rows into micro-batches that fit the cache as far as is expected, longest prefixes first.

    `max_cached_tokens` bounds rows times columns. Each micro-batch has one way of sampling. Rows of one prefix stay
    together unless they exceed the cache by themselves. A row that exceeds it alone is alone.
    """

    def count_fitting_rows(n_prefix: int, n_tokens: int) -> int:
        return min(max_rows, max_cached_tokens // count_cache_columns(n_prefix, n_tokens))

    ordered = sorted(rows, key=lambda row: (row.sampling_key, -row.n_prefix, row.prefix_ids))
    batches: list[list[DecodingRow]] = []
    for _, alike in groupby(ordered, key=lambda row: row.sampling_key):
        batch: list[DecodingRow] = []
        longest = 0
        for _, same in groupby(alike, key=lambda row: row.prefix_ids):
            group = list(same)
            limit = max(row.expected_tokens for row in group)
            alone = max(1, count_fitting_rows(group[0].n_prefix, limit))
            longest = max(longest, limit)
            if batch and len(batch) + len(group) > count_fitting_rows(batch[0].n_prefix, longest):
                batches.append(batch)
                batch, longest = [], limit
            while len(group) > alone:
                batches.append(group[:alone])
                group = group[alone:]
            batch += group
        batches.append(batch)
    return batches
