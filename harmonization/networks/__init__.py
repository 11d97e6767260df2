"""Small networks that are trained by sums of gradients."""
