"""What to make: recipe models, limits, and the plan of a changeover. Pure."""
