"""The router's OpenAI-compatible face: HTTP and server-sent events over the same domain code."""
