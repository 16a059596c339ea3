"""How the schema comes into a database, and a database of one's own where there is none. It uses ``core``."""
