"""South: how to talk to a PLC. Knows no station and no recipe."""
