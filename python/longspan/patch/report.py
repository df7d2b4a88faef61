"""What `longspan.patch` did to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


def _nothing() -> None:
    """Undo of a report that replaced nothing."""


@dataclass
class PatchReport:
    """What was replaced, what was left alone and why.

    ``replaced`` maps module paths ("model.layers.0.self_attn") to what they run now; ``skipped`` maps names
    of recipe keys to the reason for leaving that part to Hugging Face.
    """

    model: str
    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    _undo: Callable[[], None] = field(default=_nothing, repr=False, compare=False)

    def undo(self) -> None:
        """Restore the model exactly. A second call changes nothing."""
        undo, self._undo = self._undo, _nothing
        undo()

    def __str__(self) -> str:
        lines = [f"longspan.patch: {self.model}"]
        groups: dict[str, list[str]] = {}
        for path, what in self.replaced.items():
            groups.setdefault(what, []).append(path)
        for what, paths in groups.items():
            names = paths[0] if len(paths) == 1 else f"{paths[0]} .. {paths[-1]} ({len(paths)} modules)"
            lines += [f"  replaced  {names}", f"            {what}"]
        lines += [f"  skipped   {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)
