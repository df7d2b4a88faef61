"""What the configs of update engines and of update transforms share."""

from __future__ import annotations

from longspan.registry import Method


class UpdateEngine(Method):
    """Config of an update engine: how trained parameters change in a step."""


class UpdateTransform(Method):
    """Config of an update transform: what happens to gradients between accumulation and the engine."""
