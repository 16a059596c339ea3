"""What frameworks get from this package: one module each, an extra each; see the README beside this file."""
