"""The server: an OpenAI-compatible API on the engine, and the pages for people."""
