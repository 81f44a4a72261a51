"""Models: presets, loading and saving Hugging Face models, and the scalar heads of reward and value models."""
