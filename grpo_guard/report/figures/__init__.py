"""The figures of the page, each in a module of the name of its PNG file."""
