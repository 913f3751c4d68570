"""The bottling line: infeed, filler, capper, labeler, checkweigher, packer; PLCs ``wet``, ``dry``, ``inspect``."""

from hil.lines.bottling.line import DEVICE_IDS, REGISTERS, SERIAL, build
from hil.lines.bottling.plant import FORMATS, BottlingPlant

__all__ = ["DEVICE_IDS", "FORMATS", "REGISTERS", "SERIAL", "BottlingPlant", "build"]
