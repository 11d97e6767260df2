"""What every room stands on, and no domain: files, settings, seeds, secrets, errors, output."""
