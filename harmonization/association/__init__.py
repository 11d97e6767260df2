"""Whether two views of the same people go together."""
