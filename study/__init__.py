"""What a study asks for: study.yaml, and how a cohort fits it."""
