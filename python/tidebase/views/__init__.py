"""What is made of a run's rows for others to look at. They use ``domain`` and ``core``."""
