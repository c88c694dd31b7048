"""Answering for one customer or for all."""
