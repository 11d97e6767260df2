"""What sites show of themselves, where their policies let them: their own effects, and embeddings under pseudonyms.

::

    runs/<study>/<run-id>/
      shown/<site>/<result>.safetensors    the site's own shift and scale in a feature set
      shown/<site>/embeddings.parquet      a row a participant, under the site's pseudonyms
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from base.files import atomic_path, save_arrays
from exchange.messages import HarmonizeReply, part_of


def keep_shown(folder: Path, replies: Mapping[str, HarmonizeReply]) -> None:
    """Write what each site shows into the run's folder."""
    for site, reply in replies.items():
        shown, place = reply.part("shown"), folder / "shown" / site
        parameters = part_of(shown, "parameters")
        for result in sorted({name.rpartition("/")[0] for name in parameters}):
            place.mkdir(parents=True, exist_ok=True)
            save_arrays(place / f"{result}.safetensors", part_of(parameters, result))
        if "embeddings" in shown:
            place.mkdir(parents=True, exist_ok=True)
            table = pd.DataFrame(shown["embeddings"]).rename(columns="e{}".format)
            table.insert(0, "participant", reply.pseudonyms)
            with atomic_path(place / "embeddings.parquet") as temporary:
                table.to_parquet(temporary, index=False)
