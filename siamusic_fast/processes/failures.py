"""How the processes of a job fail, and what a user is told of it; without torch, to be imported at once."""

FROM_LEADER = "raised by the leading process of the job, and here because of it"
"""Note on an error that the leading process tells of: the others need not."""


class WorkerError(Exception):
    """A process of a job failed by a mistake that is not the user's: its rank and its traceback."""


def told_by_leader(error: BaseException) -> bool:
    """Whether `error` is only a repetition of what the leading process of the job raised."""
    return FROM_LEADER in getattr(error, "__notes__", ())


def describe(error: OSError) -> str:
    """Return what a user is told of a file that cannot be used."""
    if error.filename is None:
        return f"{error.strerror or error or type(error).__name__}."
    return f"{error.filename}: {error.strerror}. Choose a place that can be read and written."
