"""What we knew about each customer just before a moment."""
