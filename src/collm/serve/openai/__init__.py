"""The OpenAI-compatible server: chat and text completions over HTTP, and what belongs to them."""
