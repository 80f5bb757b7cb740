"""Shared helpers that every package may import: time, text, settings, metrics, file locks and file modes."""
