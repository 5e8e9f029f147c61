"""Texts that nearly repeat an earlier one: candidates from MinHash LSH, verified by the true Jaccard index.

finder = NearDuplicates().finder()
finder.find_or_keep("a", "...")  # None: kept, and later texts are held against it
finder.find_or_keep("b", "...")  # Near("a", 0.82)
"""

import zlib
from typing import NamedTuple

from pydantic import Field

from qwen_align.align.strict import Strict
from qwen_align.data_builders.row_texts import Part
from qwen_align.data_builders.text_units import words_and_signs

_BATCH = 4096  # shingles hashed at once: each takes 4 bytes a hash function, so a text of 10 MB would take gigabytes


class NearDuplicates(Strict):
    """Texts are near duplicates from `threshold` on: shingles of both over shingles of either.

    Shingles are runs of words, signs and single CJK characters, in lower case. The numbers are FineWeb's
    (arXiv:2406.17557, section 3.4): 5-grams, 112 hashes in 14 bands of 8, aimed at 0.75. Two texts at 0.75 become
    candidates with probability 0.77, at 0.8 with 0.92, at 0.9 with 0.9996; candidates below the threshold are kept.
    Signs are units, other than there, because operators tell one formula from another (our choice).
    """

    threshold: float = Field(default=0.75, gt=0, le=1)
    shingle: int = Field(default=5, ge=1, description="units a shingle")
    bands: int = Field(default=14, ge=2, description="more find more candidates")
    hashes_per_band: int = Field(default=8, ge=1, description="more make candidates more alike")
    part: Part = Field(default="everything", description="what of a row is compared; system turns have to be equal")

    def finder(self) -> "NearDuplicateFinder":
        return NearDuplicateFinder(self)


class Near(NamedTuple):
    """An earlier text and its Jaccard index with the one asked about."""

    id: str
    jaccard: float


class _Kept(NamedTuple):
    id: str
    group: int
    units: str


class NearDuplicateFinder:
    """Remembers the texts it has kept; the first of two near duplicates is kept."""

    def __init__(self, settings: NearDuplicates) -> None:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

        self._settings = settings
        n_hashes = settings.bands * settings.hashes_per_band
        # crc32: 32 bits, as the scheme takes, and twenty times as fast as sha1, the library's default
        self._empty = MinHash(num_perm=n_hashes, seed=1, hashfunc=zlib.crc32, scheme="affine32")
        self._index = MinHashLSH(num_perm=n_hashes, params=(settings.bands, settings.hashes_per_band))
        self._kept: list[_Kept] = []
        self._groups: dict[str, int] = {}

    def find_or_keep(self, text_id: str, text: str, group: str = "") -> Near | None:
        """The first kept text of the same group that the text nearly repeats; if there is none, the text is kept."""
        units = words_and_signs(text)
        shingles = self._shingles(units)
        if not shingles:
            return None
        minhash = self._empty.copy()
        encoded = [shingle.encode() for shingle in shingles]
        for start in range(0, len(encoded), _BATCH):
            minhash.update_batch(encoded[start : start + _BATCH])
        number = self._groups.setdefault(group, len(self._groups))
        for place in sorted(self._index.query(minhash)):
            kept = self._kept[place]
            if kept.group == number:
                theirs = self._shingles(kept.units.split(" "))
                jaccard = len(shingles & theirs) / len(shingles | theirs)
                if jaccard >= self._settings.threshold:
                    return Near(kept.id, jaccard)
        self._index.insert(len(self._kept), minhash, check_duplication=False)
        self._kept.append(_Kept(text_id, number, " ".join(units)))
        return None

    def _shingles(self, units: list[str]) -> set[str]:
        """Runs of units; a text shorter than a shingle is one itself."""
        n = self._settings.shingle
        return {" ".join(units[start : start + n]) for start in range(max(1, len(units) - n + 1))} if units else set()
