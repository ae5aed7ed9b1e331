"""UniAVGen: a person's picture and voice, made together."""

__version__ = "0.1.0"
