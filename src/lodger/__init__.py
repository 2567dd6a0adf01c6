"""Lodger serves chat, embedding and rerank models from the memory that other jobs leave free.

Importing this package has no side effect and loads nothing heavy.
"""

__version__ = "0.1.0"
