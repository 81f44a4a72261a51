"""Self-taught reasoning (Zelikman et al. 2022): rationales of a model's own, filtered by their answers, learned."""
