"""The checks that need the whole line, in order. Everything found is collected in the context."""

from __future__ import annotations

from controller.config.check_stations import check_stations
from controller.config.check_tags import check_tags
from controller.config.check_values import check_values
from controller.config.context import Context


def check(context: Context) -> None:
    """Run all checks; fills the context's tags, conditions, parameter specifications, errors and warnings."""
    check_tags(context)
    check_stations(context)
    check_values(context)
