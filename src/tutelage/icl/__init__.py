"""In-context learning: tasks, demonstrations, their order, instructions, scoring, reasoning."""
