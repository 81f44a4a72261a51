"""People in the loop: the ranking store, what goes in and out of it, and how far people agree (rank 5)."""
