"""The embedded world: documents, instruction items, a gold judge and simulated annotators. Pure Python, endless, seeded."""

from tutelage.schoolroom.world import Item, World

__all__ = ["Item", "World"]
