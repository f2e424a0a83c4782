"""Processes that serve: the cloud server and, later, the HTTP API."""
