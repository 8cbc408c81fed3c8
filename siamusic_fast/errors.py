"""What a user can get wrong: the errors that the command line turns into one red line."""


class SiamusicError(Exception):
    """A mistake that the user can mend. The message holds the offending value, the limit and the remedy."""


class ConfigError(SiamusicError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(SiamusicError):
    """Audio, metadata, shards or a run that is missing, damaged or not what the command needs."""


class DeviceError(SiamusicError):
    """A device that was asked for and is not there."""
