"""Errors for mistakes of users; the command line shows each as one red line."""


class SiamusicError(Exception):
    """A mistake that the user can correct. The message names the wrong value, the limit and a remedy."""


class ConfigError(SiamusicError):
    """A setting has a wrong value, or does not go together with another setting or with the data."""


class DataError(SiamusicError):
    """Audio, metadata, shards or a run are missing or damaged, or are not what is needed here."""


class DeviceError(SiamusicError):
    """The device that was asked for is not on this machine."""
