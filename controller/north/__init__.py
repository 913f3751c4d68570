"""The one way out and in: frames, publisher, client."""
