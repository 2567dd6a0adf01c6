"""RAGFlow: what it sends to a model server, and how models are registered there.

Versions are those of RAGFlow; what they send and answer was read in their source and seen on the wire.
"""
