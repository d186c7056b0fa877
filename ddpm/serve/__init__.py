"""Serving: an exported model over HTTP. Needs no torch."""
