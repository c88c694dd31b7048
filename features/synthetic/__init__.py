"""A simulated shop whose truth is known: its world, the rows it leaves behind, and an oracle's answers."""
