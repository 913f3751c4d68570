"""The checks that need the whole line, in order. Everything found is collected in the context."""

from __future__ import annotations

from controller.config.check_handshake import check_handshake
from controller.config.check_serial import check_serial
from controller.config.check_stations import check_stations
from controller.config.check_tags import check_tags
from controller.config.check_values import check_values
from controller.config.context import Context


def check(context: Context) -> None:
    """Run all checks; fills the context's tags, conditions, parameter specifications, errors and warnings."""
    check_tags(context)
    check_serial(context)
    check_handshake(context)
    check_stations(context)
    check_values(context)
