"""What an evaluation says: figures with all that one must know to take them again, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qsattn_plugin.text import text_table


@dataclass(frozen=True)
class Figure:
    """One number and how it was taken."""

    name: str  # such as fid-768
    value: float
    better: str  # "lower" or "higher"
    images: dict[str, int]  # how many pictures went into it, by what they are: {"scored": 120, "real": 140}
    resize: str  # what was done to the pictures' sizes
    settings: dict[str, Any] = field(default_factory=dict)  # everything else that the number depends on
    deviation: float | None = None  # of the value over random subsets, where there are some


@dataclass
class Scores:
    """All figures of one evaluation, in the order they were asked for."""

    about: dict[str, Any]  # what was scored, and with which versions
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # sentences that one should know before quoting them

    def __getitem__(self, name: str) -> Figure:
        """Return a figure by its name."""
        return next(figure for figure in self.figures if figure.name == name)

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**self.about, "figures": [asdict(figure) for figure in self.figures], "warnings": self.warnings}

    def table(self) -> str:
        """Figures as aligned text, one a line; below it how they were taken, equal notes told once."""
        rows = [("figure", "value", "better", "pictures")]
        for figure in self.figures:
            value = f"{figure.value:.6g}"
            if figure.deviation is not None:
                value += f" ± {figure.deviation:.2g}"
            counts = ", ".join(f"{count} {what}" for what, count in figure.images.items())
            rows.append((figure.name, value, figure.better, counts))
        notes: dict[str, list[str]] = {}
        for figure in self.figures:
            settings = ", ".join(f"{key} {_plain(value)}" for key, value in figure.settings.items())
            notes.setdefault(f"{settings}; pictures {figure.resize}", []).append(figure.name)
        return "\n".join(
            [text_table(rows, rule=True), "", *(f"{', '.join(names)}: {note}" for note, names in notes.items())]
        )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
