"""The clock, the scan loop, PLC link supervision, journal and service life cycle."""
