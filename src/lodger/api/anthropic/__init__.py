"""Anthropic's Messages API: blocks of a conversation in, the blocks and events of an answer out."""
