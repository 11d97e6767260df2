"""A hospital's keys, its signatures, and how it joins a federation."""
