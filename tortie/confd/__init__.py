"""Datastore to template context (pure) to files, checked and reloaded."""
