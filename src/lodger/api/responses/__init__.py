"""OpenAI's Responses API: the items of a conversation in, the items and events of an answer out."""
