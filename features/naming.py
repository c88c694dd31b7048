"""The grammar of feature names: `<what>_<statistic>[_by_<group>][_<window>]`, the unit visible."""

from __future__ import annotations

import re
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
    """`text` as a part of a name: lower case, everything but letters and digits an underscore."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
