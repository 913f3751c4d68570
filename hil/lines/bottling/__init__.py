"""The bottling line: infeed, filler, capper, labeler, checkweigher, packer; PLCs ``wet``, ``dry``, ``inspect``."""

from hil.lines.bottling.line import REGISTERS, build
from hil.lines.bottling.plant import FORMATS, BottlingPlant

__all__ = ["FORMATS", "REGISTERS", "BottlingPlant", "build"]
