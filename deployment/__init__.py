"""A federation of real machines: authority, edge, supervision, checks."""
