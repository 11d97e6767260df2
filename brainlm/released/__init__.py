"""The two architectures that BrainLM's authors released, and their folders."""
