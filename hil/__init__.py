"""The hardware-in-the-loop bench: plants, virtual PLCs, both tiers."""
