"""Finds texts that nearly repeat an earlier one: candidates from MinHash LSH, verified by the Jaccard index.

finder = NearDuplicates().make_finder()
finder.find_or_keep("a", "...")  # None: kept, and later texts are compared with it
finder.find_or_keep("b", "...")  # Near("a", 0.82)
"""

import zlib
from array import array
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.row_texts import Part
from qwen_align.data_builders.text_to_words import split_words_and_signs

if TYPE_CHECKING:
    from qwen_align.data_builders.shingle_bitmaps import Hashes

_BATCH_SHINGLES = (
    4096  # shingles hashed at once: each takes 4 bytes a hash function, so a text of 10 MB would take gigabytes
)


class NearDuplicates(Strict):
    """Settings of near-duplicate removal by the Jaccard index of the texts' shingles.

    Texts are near duplicates if it reaches `threshold`. Shingles are runs of words, signs and single CJK characters, in
    lower case. The numbers are FineWeb's (arXiv:2406.17557, section 3.4): 5-grams, 112 hashes in 14 bands of 8, aimed
    at 0.75. Two texts at 0.75 become candidates with probability 0.77, at 0.8 with 0.92, at 0.9 with 0.9996; candidates
    below the threshold are kept. Signs are units, other than there, because operators tell one formula from another
    (our choice).
    """

    threshold: float = Field(
        default=0.75, gt=0, le=1, description="smallest Jaccard index of the shingles of near duplicates"
    )
    shingle: int = Field(default=5, ge=1, description="units (words, signs, CJK characters) in a shingle")
    bands: int = Field(default=14, ge=2, description="bands of MinHash LSH; more find more candidates")
    hashes_per_band: int = Field(default=8, ge=1, description="hashes in a band; more make candidates more alike")
    part: Part = Field(
        default="everything", description="part of a row that is compared; system turns have to be equal"
    )

    def make_finder(self) -> "NearDuplicateFinder":
        """Makes a near-duplicate finder with these settings that has kept no text yet."""
        return NearDuplicateFinder(self)


class Near(NamedTuple):
    """The id of an earlier text and its Jaccard index with the new text."""

    id: str
    jaccard: float


class _Kept(NamedTuple):
    """A text that the finder has kept, as its units (words and signs) joined by spaces."""

    id: str
    units: str


class NearDuplicateFinder:
    """A finder of near duplicates among the texts given to it so far.

    The first of two near duplicates is kept. Texts that share a band are candidates. Bit maps leave out nearly all of
    them that are too far apart, before any is counted: texts of one template are candidates for each other by the
    thousand.
    """

    def __init__(self, settings: NearDuplicates) -> None:
        # Imported late: it takes a third of a second, and only near-duplicate removal needs it.
        from datasketch import MinHash  # type: ignore[import-untyped]

        from qwen_align.data_builders.shingle_bitmaps import ShingleMaps

        self._settings = settings
        n_hashes = settings.bands * settings.hashes_per_band
        self._empty = MinHash(num_perm=n_hashes, seed=1, hashfunc=int, scheme="affine32")
        self._bands: dict[bytes, array[int]] = {}
        self._maps = ShingleMaps()
        self._kept: list[_Kept] = []
        self._groups: dict[str, int] = {}

    def find_or_keep(self, text_id: str, text: str, group: str = "") -> Near | None:
        """Returns the first kept text of the same group that a text nearly repeats.

        Returns None, and keeps the text, if there is none.
        """
        import numpy as np

        units = split_words_and_signs(text)
        shingles = self._collect_shingles(units)
        if not shingles:
            return None
        # 32 bits, as the scheme takes, and twenty times as fast as sha1, the library's default
        hashes = np.fromiter((zlib.crc32(shingle.encode()) for shingle in shingles), np.uint32, len(shingles))
        bands = self._hash_bands(hashes, self._groups.setdefault(group, len(self._groups)))
        indices_sharing_band = [
            np.frombuffer(band_indices, np.uintc) for band in bands if (band_indices := self._bands.get(band))
        ]
        if indices_sharing_band:
            candidates = self._maps.find_possibly_alike(
                np.concatenate(indices_sharing_band), hashes, self._settings.threshold
            )
            for index in np.unique(candidates):
                kept_text = self._kept[index]
                kept_shingles = self._collect_shingles(kept_text.units.split(" "))
                jaccard = len(shingles & kept_shingles) / len(shingles | kept_shingles)
                if jaccard >= self._settings.threshold:
                    return Near(kept_text.id, jaccard)
        del indices_sharing_band  # an array with a view on it cannot grow
        for band in bands:
            self._bands.setdefault(band, array("I")).append(len(self._kept))
        self._maps.add(hashes)
        self._kept.append(_Kept(text_id, " ".join(units)))
        return None

    def _hash_bands(self, hashes: "Hashes", group: int) -> list[bytes]:
        """Hashes the bands of a text's MinHash signature to keys for finding candidates.

        Keys are equal for texts of a group that have the band's hashes in common.
        """
        minhash = self._empty.copy()
        for start in range(0, len(hashes), _BATCH_SHINGLES):
            minhash.update_batch(hashes[start : start + _BATCH_SHINGLES])
        n = self._settings.hashes_per_band
        return [
            b"%d %d " % (group, band) + minhash.hashvalues[band * n : (band + 1) * n].tobytes()
            for band in range(self._settings.bands)
        ]

    def _collect_shingles(self, units: list[str]) -> set[str]:
        """Returns the set of a text's shingles, which are runs of consecutive units.

        A text shorter than a shingle is one itself.
        """
        n = self._settings.shingle
        return {" ".join(units[start : start + n]) for start in range(max(1, len(units) - n + 1))} if units else set()
