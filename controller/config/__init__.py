"""line.yaml, tag files and recipes → a validated, immutable :class:`LineConfig`; errors with file, line and a hint."""

from __future__ import annotations

from controller.config.kinds import KindInfo, PointInfo
from controller.config.line import LineConfig
from controller.config.load import load
from controller.config.problems import ConfigError
from recipes.problem import Problem

__all__ = ["ConfigError", "KindInfo", "LineConfig", "PointInfo", "Problem", "load"]
