"""A result: a title, columns, rows and remarks, as Markdown or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    """One table of results.

    Attributes:
        title: what was measured.
        columns: their heads, the first one for the names of the rows.
        rows: as printed.
        remarks: sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return it for people; figures are aligned to the right."""
        heads = [f"| {' | '.join(self.columns)} |", f"|---|{'---:|' * (len(self.columns) - 1)}"]
        lines = [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(
            [f"**{self.title}**", "", *heads, *lines, *(["", *self.remarks] if self.remarks else [])]
        )

    def as_json(self) -> list[dict[str, str]]:
        """Return the rows for scripts."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]
