"""A model that people talk to: engine, protocol and server."""
