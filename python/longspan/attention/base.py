"""What every attention method's config shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from longspan.registry import Method

if TYPE_CHECKING:
    from longspan.ops import AttentionPattern

Phase = Literal["train", "prefill", "decode"]


class AttentionMethod(Method):
    """Config of an attention method: which (query, key) pairs attend."""

    phases: ClassVar[tuple[Phase, ...]] = ("train", "prefill", "decode")
    """Where the method may be used; a recipe that asks for it elsewhere is refused."""

    def pattern(self, length: int) -> AttentionPattern:
        """The pattern for rows of ``length`` tokens, the length that the recipe configures.

        A group size that follows from the length is fixed here, once per run. Imports torch.
        """
        raise TypeError(f"{type(self).__name__} does not define pattern()")

    def check(self, length: int) -> None:
        """Raise ``ValueError`` when the method cannot serve rows of ``length`` tokens."""
