"""The errors that a user sees: each says what, which, how many, and the way out."""

from __future__ import annotations


class Refused(Exception):
    """Work that Tiercast will not do, with the reason; the command line prints it and exits with 1."""


class UsageRefused(Refused):
    """A request that is not well-formed (arguments or settings); the command line exits with 2."""


class ContractError(Refused):
    """Tables that break the data contract; lists every problem of every table at once."""


class SettingsError(UsageRefused):
    """A `tiercast.toml` that cannot be read; lists every problem at once."""


class CutoffOutsideData(Refused):
    """A cutoff before the first paid order or after the end of the data."""


class HorizonNotMature(Refused):
    """A target window that ends after the moment up to which the data may be read."""


class TooLittleData(Refused):
    """A history that cannot support what was asked, with what would be enough."""


class SpecMismatch(Refused):
    """Features that are not those a model was trained on."""


class BundleError(Refused):
    """A bundle whose files are missing, changed or malformed."""


class ReleaseNotFound(Refused):
    """No release under this version or alias in the workspace."""
