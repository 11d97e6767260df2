"""How much of the site features still show."""
