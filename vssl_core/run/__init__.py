"""What happens over time: the loop, checkpoints, extraction, logs, ranks."""
