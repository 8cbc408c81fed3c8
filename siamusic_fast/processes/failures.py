"""How processes fail, and how one tells another of its error; imports no torch, so that it is quick."""

from dataclasses import dataclass
from typing import Any

from siamusic_fast.errors import ConfigError, DataError, DeviceError, SiamusicError

_CLASSES = {kind.__name__: kind for kind in (ConfigError, DataError, DeviceError, SiamusicError)}
_FROM_LEADER = "raised by the leading process, and repeated here"


class WorkerError(Exception):
    """A process failed by a mistake that is not the user's; the message has its rank and its traceback."""


class UnreachableError(SiamusicError):
    """Another process was waited for in vain. It hangs, or the network is cut: another start may do."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What a person may do after processes have failed: part of the error."""

    go_on: str = "resume=True (on the command line --resume) goes on from the last checkpoint"
    """How the work goes on. Default: as `pretrain` and `finetune` do."""
    restarts: bool = True
    """Whether the function goes on by itself when `max_restarts` starts it again, as `pretrain` does."""
    timeout: bool = True
    """Whether a person chose the `timeout`, and can choose a longer one."""


OF_PRETRAINING = Remedy()
OF_FINETUNING = Remedy(restarts=False)
OF_EMBEDDING = Remedy(go_on="The same call (on the command line the same command) goes on", restarts=False)
OF_SCORES = Remedy(go_on="Make the same call (on the command line the same command) again", restarts=False)
OF_CELLS = Remedy(go_on="The same command goes on", restarts=False, timeout=False)


def error_to_words(error: Exception) -> tuple[str, str]:
    """Return the class and the message of `error`, for another process; an OSError becomes a DataError."""
    if isinstance(error, OSError):
        error = DataError(os_error_message(error))
    names = (name for name, kind in _CLASSES.items() if isinstance(error, kind))
    return next(names, type(error).__name__), str(error)


def error_from_words(name: str, message: str) -> Exception:
    """Return the error that `error_to_words` described; one that is no SiamusicError as a RuntimeError."""
    kind = _CLASSES.get(name)
    return kind(message) if kind else RuntimeError(f"{name}: {message}")


def repeated_from_leader(words: Any) -> Exception:
    """Return the error of the leading process, marked so that only that process shows it."""
    error = error_from_words(*words)
    error.add_note(_FROM_LEADER)
    return error


def is_repeated(error: BaseException) -> bool:
    """Whether the leading process raised `error` as well, and shows it."""
    return _FROM_LEADER in getattr(error, "__notes__", ())


def os_error_message(error: OSError) -> str:
    """Return what a user is told of a file that cannot be used."""
    if error.filename is None:
        return f"{error.strerror or error or type(error).__name__}."
    return f"{error.filename}: {error.strerror}. Choose a place that can be read and written."
