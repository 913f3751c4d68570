"""``linewright plc …``: look at, write to, scan and measure one PLC, with or without a line.yaml."""

from controller.cli.plc.commands import app

__all__ = ["app"]
