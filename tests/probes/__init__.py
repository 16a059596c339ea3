"""Sessions raced against each other, from barriers and behind locks: each returns what it saw go wrong."""
