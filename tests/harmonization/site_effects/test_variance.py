from dataclasses import replace

import numpy as np
import pytest

from harmonization import HarmonizationError, SiteVariance, run_pooled


@pytest.mark.parametrize("constant", [0.1, 333333.3333333333])
def test_the_site_explains_nothing_of_a_feature_that_is_the_same_for_everybody(five_sites, constant):
    tables = [replace(t, features=np.column_stack([t.features, np.full(t.n, constant)])) for t in five_sites.tables]

    assert run_pooled(SiteVariance(), tables).eta_squared[-1] == 0


def test_one_site_is_refused(five_sites):
    with pytest.raises(HarmonizationError, match="one site only"):
        run_pooled(SiteVariance(), five_sites.tables[:1])
