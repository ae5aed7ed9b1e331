"""One thin file a command; nothing here imports torch or numpy at module level."""
