"""An example of every command, which its ``--help`` ends with."""

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "cohort prepare": (
        "fedbrainlm cohort prepare matrices.npz data/lund --atlas schaefer100 --participants participants.tsv --tr 2.0",
        "fedbrainlm cohort prepare derivatives/xcp_d data/bergen --atlas schaefer100 --participants participants.tsv",
        "fedbrainlm cohort prepare derivatives/fmriprep data/oslo --settings prepare.yaml",
    ),
    "cohort simulate": ("fedbrainlm cohort simulate data --sites 4 --participants 40",),
    "cohort vectors": ("fedbrainlm cohort vectors data/lund genes.parquet --name genes",),
    "cohort show": ("fedbrainlm cohort show data/lund --recordings",),
    "cohort check": ("fedbrainlm cohort check data/lund --study study.yaml --quality configs/quality.yaml",),
    "cohort export": ("fedbrainlm cohort export data/lund exported --format huggingface",),
    "model import": ("fedbrainlm model import vitmae_111M brainlm-111m.safetensors",),
    "model export": ("fedbrainlm model export runs/demo/20261122-194952/checkpoints/round-0008.safetensors exported",),
    "model info": ("fedbrainlm model info brainlm-111m.safetensors",),
    "study init": ("fedbrainlm study init data/oslo data/bergen data/lund --out study.yaml",),
    "study build": ("fedbrainlm study build study.yaml --out study.fab",),
    "site init": ("fedbrainlm site init oslo --name oslo --cohort data/oslo",),
    "site join": ("fedbrainlm site join oslo/site.yaml nordic.join.json",),
    "site check": ("fedbrainlm site check oslo/site.yaml --study study.yaml",),
    "site start": ("fedbrainlm site start oslo/site.yaml",),
    "site execute": ("fedbrainlm site execute oslo/site.yaml",),
    "site show": ("fedbrainlm site show study.fab oslo/site.yaml",),
    "site approve": ("fedbrainlm site approve oslo/site.yaml study.fab --by kari",),
    "site approved": ("fedbrainlm site approved oslo/site.yaml",),
    "site withdraw": ("fedbrainlm site withdraw oslo/site.yaml becebc1f7a2a --by kari",),
    "site key": ("fedbrainlm site key oslo/site.yaml --out oslo.json",),
    "site approve-roster": ("fedbrainlm site approve-roster oslo/site.yaml roster.json --by kari",),
    "site rosters": ("fedbrainlm site rosters oslo/site.yaml",),
    "site revoke-roster": ("fedbrainlm site revoke-roster oslo/site.yaml 23692212a1f9 --by kari",),
    "site audit show": ("fedbrainlm site audit show oslo/site.yaml --last 20",),
    "site audit verify": ("fedbrainlm site audit verify oslo/site.yaml",),
    "site audit export": ("fedbrainlm site audit export oslo/site.yaml audit.csv",),
    "federation init": ("fedbrainlm federation init nordic --name nordic --host coordinator.example.org",),
    "federation add-site": ("fedbrainlm federation add-site nordic oslo.bundle.json",),
    "federation revoke-site": ("fedbrainlm federation revoke-site nordic oslo",),
    "federation package": ("fedbrainlm federation package nordic --out nordic.join.json",),
    "federation start": ("fedbrainlm federation start nordic",),
    "federation stop": ("fedbrainlm federation stop nordic",),
    "federation status": ("fedbrainlm federation status nordic",),
    "federation check": ("fedbrainlm federation check nordic",),
    "federation renew": ("fedbrainlm federation renew nordic",),
    "federation roster": (
        "fedbrainlm federation roster oslo.json bergen.json lund.json --name nordic --out roster.json",
    ),
    "federation metrics": ("fedbrainlm federation metrics nordic --port 9464",),
    "demo": ("fedbrainlm demo",),
    "run": (
        "fedbrainlm run study.yaml --simulate data/oslo data/bergen data/lund",
        "fedbrainlm run study.yaml --federation nordic",
        "fedbrainlm run --resume 20261122-194952",
    ),
    "watch": ("fedbrainlm watch 20261122-194952",),
    "report": ("fedbrainlm report runs/demo/20261122-194952",),
    "evaluate": (
        "fedbrainlm evaluate runs/demo/20261122-194952/checkpoints/round-0008.safetensors data/lund --mask future",
    ),
}
"""Command → how it may be called, word for word."""


def with_examples(command: click.Command, name: str) -> click.Command:
    """Let the help of a command, or of every command of a group, end with its examples."""
    if isinstance(command, click.Group):
        for own_name, own in command.commands.items():
            with_examples(own, f"{name} {own_name}")
    elif name in EXAMPLES:
        examples = EXAMPLES[name]
        command.epilog = "\n\n".join([f"Example{'s' * (len(examples) > 1)}:", *examples])
    return command
