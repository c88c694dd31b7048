"""From a shop's history to a reviewed release."""
