"""Losses as pure functions of tensors: lm (cross entropy), preference (Bradley-Terry, DPO), policy (PPO), contrastive.

Only torch is imported here. Shape suffixes: B batch, T time, V vocabulary, D hidden, P prompts, K responses.
"""
