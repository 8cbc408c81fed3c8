"""Errors for mistakes of users; the command line shows each as one red line."""


class SiamusicError(Exception):
    """A mistake that the user can correct. The message names the wrong value, the limit and a remedy."""


class ConfigError(SiamusicError):
    """A setting has a wrong value, or does not go together with another setting or with the data."""


class DataError(SiamusicError):
    """Audio, metadata, shards or a run are missing or damaged, or are not what is needed here."""


class DeviceError(SiamusicError):
    """The device that was asked for is not on this machine."""


def not_installed(module: str, extra: str, otherwise: str = "") -> ConfigError:
    """Return the error to raise if `module`, which the optional `extra` brings, is not installed.

    `otherwise` ends the message with what works without it.
    """
    return ConfigError(f"{module} is not installed: run `pip install 'siamusic-fast[{extra}]'`{otherwise}.")
