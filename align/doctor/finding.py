"""Defines the result of one check of the doctor."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """The result of one check. `advice` is empty when nothing is wrong; `is_bad`: it prevents a run."""

    what: str
    found: str
    advice: str = ""
    is_bad: bool = False

    @property
    def state(self) -> Literal["ok", "note", "wrong"]:
        """Returns how the finding is."""
        return "wrong" if self.is_bad else ("note" if self.advice else "ok")

    def format_line(self) -> str:
        """Formats the finding as one line of text."""
        return f"{self.state:<6}{self.what:<14}{self.found}" + (f"  -> {self.advice}" if self.advice else "")

    def to_record(self) -> dict[str, str]:
        """Returns the finding as plain data."""
        return {"what": self.what, "state": self.state, "found": self.found, "advice": self.advice}

    @classmethod
    def from_record(cls, record: dict[str, str]) -> "Finding":
        """Reads a finding from plain data."""
        return cls(record["what"], record["found"], record["advice"], record["state"] == "wrong")
