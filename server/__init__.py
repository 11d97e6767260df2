"""The coordinator's side: runs a study's stages, adds what sites send, and writes what came out."""
