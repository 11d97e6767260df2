import hashlib

import numpy as np

from cohorts import Cohort, load_atlas
from cohorts.simulation import (
    NETWORKS,
    SimulatedSite,
    simulate_cohorts,
    simulate_people,
    simulate_recording,
    simulated_hospitals,
)


def connectivity(cohort: Cohort) -> np.ndarray:
    upper = np.triu_indices(cohort.atlas.n_parcels, 1)
    return np.stack([np.corrcoef(recording.signal.T)[upper] for recording in cohort])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    sites = simulated_hospitals(2, 3, minutes=2)
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        paths = simulate_cohorts(tmp_path / name, sites, atlas="schaefer100", seed=seed)
        files = sorted(file for path in paths for file in path.rglob("*.safetensors"))
        digests.append(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())

    assert digests[0] == digests[1] != digests[2]


def test_connectivity_looks_like_real_data(tmp_path):
    sites = simulated_hospitals(2, 12)
    paths = simulate_cohorts(tmp_path / "c", sites, atlas="schaefer100", seed=0)
    atlas = load_atlas("schaefer100")
    distance = np.linalg.norm(atlas.coordinates[:, None] - atlas.coordinates[None], axis=-1)[np.triu_indices(100, 1)]

    for path in paths:
        cohort = Cohort.open(path)
        mean = connectivity(cohort).mean(axis=0)
        assert 0.15 < mean.mean() < 0.6
        assert np.corrcoef(mean, distance)[0, 1] < -0.2  # neighbours are more alike
        assert 20 < cohort.recordings["tsnr"].median() < 150


def test_effects_have_the_size_that_was_asked_for(tmp_path):
    def age_slope(effect: float) -> float:
        site = SimulatedSite("s", n_participants=40, n_frames=300, age_effect=effect, site_effect=0)
        people = simulate_people(site, 3)
        atlas = load_atlas("schaefer100")
        hand = np.linalg.norm(atlas.coordinates - NETWORKS["somatomotor_hand"][0], axis=1).argmin()
        strength = [simulate_recording(site, person, atlas, 3).signal[:, hand].std() for person in people]
        return float(np.corrcoef(strength, [person.age for person in people])[0, 1])

    assert abs(age_slope(0.0)) < 0.3
    assert age_slope(2.0) > 0.5


def test_a_person_is_the_same_in_every_atlas(tmp_path):
    site = SimulatedSite("s", n_participants=1, t_r=1.7, n_frames=400)
    person = simulate_people(site, 1)[0]
    coarse, fine = (load_atlas(name) for name in ("schaefer100", "schaefer400"))
    nearest = np.linalg.norm(fine.coordinates[:, None] - coarse.coordinates[None], axis=-1).argmin(axis=0)

    a, b = (simulate_recording(site, person, atlas, 1) for atlas in (coarse, fine))

    assert (a.t_r, a.signal.shape, b.signal.shape) == (1.7, (400, 100), (400, 400))
    pairs = zip(a.signal.T, b.signal[:, nearest].T, strict=True)
    same = [np.corrcoef(one, other)[0, 1] for one, other in pairs]
    assert np.median(same) > 0.5
