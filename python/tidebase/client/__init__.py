"""The faces: what a worker holds and what an operator asks. They use ``domain``, ``core`` and ``schema``."""
