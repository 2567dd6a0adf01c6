"""Frames between our own processes: msgpack over a unix socket. No pickle, no TCP."""
