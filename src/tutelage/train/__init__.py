"""Training: optimisers, checkpoints, the one loop, objectives, PPO."""
