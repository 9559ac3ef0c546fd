"""The demo: a small language model against a sentence encoder, from files that come as Python packages."""
