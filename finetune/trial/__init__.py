"""One trial, from config to record."""
