"""Texts that somebody else wrote, for people to look at."""


def printable(text: str) -> str:
    """Text without what a terminal would obey, such as a name that somebody gave a file."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
