"""What a run writes in place of a checkpoint."""
