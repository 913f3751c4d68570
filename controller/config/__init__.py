"""line.yaml to a validated, immutable line; errors with file:line and a hint."""
