"""Code of strangers, for type checkers: it is read, and never executed. See ``tests/test_typing.py``."""
