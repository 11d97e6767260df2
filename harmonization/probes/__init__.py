"""How well something is read from features, in people left out."""
