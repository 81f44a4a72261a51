"""Versioned migrations of the store, run by feedback/database.py whenever a store is opened."""
