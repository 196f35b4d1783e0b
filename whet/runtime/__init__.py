"""Engines, sessions, the cache, and what happens while they run."""
