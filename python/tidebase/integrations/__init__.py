"""Adapters for frameworks in which agents are written, each behind an extra of its own."""
