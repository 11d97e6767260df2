"""`fedbrainlm`, the command line."""
