"""CoLLM: a language model shared between a small device and the cloud, token by token."""

__version__ = "0.1.0"
