"""One module a domain, named as its file in ``sql/functions``: its rows, its calls, its flows. It uses ``core``."""
