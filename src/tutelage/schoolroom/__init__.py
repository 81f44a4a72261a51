"""The embedded world: documents, instruction items, a gold judge, simulated annotators; pure Python, seeded."""

from tutelage.schoolroom.lessons import Cast, Lesson, family
from tutelage.schoolroom.world import Item, World

__all__ = ["Cast", "Item", "Lesson", "World", "family"]
