"""Dynamic inference: rows that leave early, and tokens that are dropped on the way."""
