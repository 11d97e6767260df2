"""What may cross the wire between a hospital and the coordinator, and nothing else."""
