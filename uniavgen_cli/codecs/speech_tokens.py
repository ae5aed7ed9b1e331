"""Speech text as indices for nano: one character, one index."""

NUM_CHARACTERS = 128


def character_indices(text: str) -> list[int]:
    """The ASCII code of each character; 0, a filler, for any other."""
    return [code if (code := ord(c)) < NUM_CHARACTERS else 0 for c in text]
