"""Files of a corpus that are not packed, each with a reason."""

from dataclasses import dataclass

CONFLICT = "whose label is"


@dataclass(frozen=True, slots=True)
class Reject:
    """One row of rejected.csv; `reason` is one of `decode.REASONS`."""

    path: str
    reason: str
    detail: str


def reject_duplicate(path: str, label: str, kept_path: str, kept_label: str) -> Reject:
    """Return the reject of a file with the same bytes as another. It says whether their labels differ."""
    detail = f"same bytes as {kept_path}"
    if label not in ("", kept_label):
        detail += f", {CONFLICT} {kept_label!r}, not {label!r}"
    return Reject(path, "duplicate", detail)
