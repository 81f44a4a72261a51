"""The embedded world: documents, instruction items, a gold judge, simulated annotators; pure Python, seeded."""

from tutelage.schoolroom.world import Item, World

__all__ = ["Item", "World"]
