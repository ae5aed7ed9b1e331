"""Drawn, speaking avatars: identities, motion, pictures, captions and voices."""
