"""Processes: the cloud server, and a cloud process of one's own."""
