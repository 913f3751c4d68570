"""Station kinds: one small, pure file per kind of station."""
