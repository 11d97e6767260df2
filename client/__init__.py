"""A hospital's side: computes where the recordings are, and lets out only what its policy allows."""
