"""AutoGLM-Phone hot update: a running phone assistant gets a new brain over the air."""

__version__ = "0.1.0"
