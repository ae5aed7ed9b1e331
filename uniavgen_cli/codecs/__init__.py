"""Codecs: pictures, sound and captions to the arrays the joint model reads, and back."""
