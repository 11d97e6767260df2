"""The scikit-learn-like faces, for tables that lie pooled in one place."""
