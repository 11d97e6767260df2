"""What a reader must know before believing a run's numbers, in sentences."""

from server.harmonizing import Findings


def cautions_of(findings: Findings) -> list[str]:
    """List what was left out."""
    by_reason = findings.left_out_by_reason()
    return [f"Left out: {', '.join(what)}: {why.removesuffix('.')}." for why, what in by_reason.items()]
