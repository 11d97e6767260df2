"""Transformers in scikit-learn's manner, for tables that lie pooled in one place."""
