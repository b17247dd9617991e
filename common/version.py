"""The project's version, for pyproject.toml and for --version."""

VERSION = "0.1.0"
