"""What is to be known of recordings that are good: each notice has a code, which goes with the recording."""

NOTICES = {
    "former-names": "their parcels have the names that the atlas had before its authors corrected them; they were read "
    "under today's names",
    "further-columns": "their files have further columns, of structures that the atlas has not; these were left out",
    "header-tr": "the header of their file states another repetition time than their sidecar or --tr, which counts",
}
"""Code → what it says of its recordings."""
