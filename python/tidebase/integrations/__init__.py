"""Agent frameworks on Tidebase: one module each, with an extra of its own, which nothing else of the package imports.
What each of them promises, and what it asks of an agent, is in the README beside them.
"""
