"""Ways of making sites alike, and of taking effects out."""
