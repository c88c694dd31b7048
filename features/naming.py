"""The grammar of feature names: `<what>_<statistic>[_by_<group>][_<window>]`, the unit visible."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One feature: the parts of its name, and one line of meaning.

    `window_days` counts back from the cutoff: a row is inside when 0 < age <= window.
    """

    what: str
    statistic: str
    meaning: str
    group: str | None = None
    window_days: int | None = None

    @property
    def name(self) -> str:
        parts = [self.what, self.statistic]
        if self.group is not None:
            parts.append(f"by_{self.group}")
        if self.window_days is not None:
            parts.append(f"{self.window_days}d")
        return "_".join(parts)


def as_word(text: str) -> str:
    """`text` as a part of a name: lower case without accents, everything but letters and digits an underscore.

    Texts in other scripts, of which nothing readable would remain, are told apart by four digits of a hash.
    """
    plain = unicodedata.normalize("NFKD", text.lower().translate(_WITHOUT_ACCENT))
    bare = "".join(sign for sign in plain if not unicodedata.combining(sign))
    word = re.sub(r"[^a-z0-9]+", "_", bare).strip("_")
    if all(sign.isascii() for sign in bare if sign.isalnum()):
        return word or "unnamed"
    return f"{word or 'unnamed'}_{hashlib.sha256(text.encode()).hexdigest()[:4]}"


# Letters that Unicode does not take apart into a plain letter and an accent.
_WITHOUT_ACCENT = str.maketrans({"đ": "d", "ø": "o", "ł": "l", "ß": "ss", "æ": "ae", "œ": "oe"})
