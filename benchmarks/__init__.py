"""Measurements of the whole service, and of its peers beside it. Nothing here is imported by the service."""
