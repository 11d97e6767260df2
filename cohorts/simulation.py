"""Simulated multi-site cohorts with known age, sex and site effects.

A person is a set of latent sources in the Fourier domain, drawn from the person's seed alone; a parcel hears each
source through a smooth function of its position in millimetres. The same person can so be recorded in any atlas.
Nothing here is derived from patients: the places of the networks are textbook MNI coordinates.

The signal of parcel p at time t, in percent of its mean::

    x[p, t] = sum_k gain[k] * map[k, p] * network[k, t]  +  local[p, t]  +  motion[p, t]  +  noise[p, t]

Age and sex change the gains of a few networks, and age slows the haemodynamic response; the scanner changes the noise
over the brain, its temporal smoothness, the global signal and the gains of the networks.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from base.files import atomic_folder
from base.seeding import derive_seed
from cohorts.atlas import Atlas, load_atlas
from cohorts.cohort import Cohort
from cohorts.quality import temporal_snr
from cohorts.recording import Recording
from cohorts.vectors import Vectors, save_vectors

#: Centres of the networks in MNI millimetres; homologous pairs share one time course.
NETWORKS: dict[str, list[tuple[float, float, float]]] = {
    "visual_medial": [(-8, -88, 4), (8, -88, 4)],
    "visual_lateral": [(-42, -74, -6), (42, -74, -6)],
    "somatomotor_hand": [(-40, -24, 56), (40, -24, 56)],
    "somatomotor_face": [(-56, -8, 28), (56, -8, 28)],
    "auditory": [(-52, -20, 8), (52, -20, 8)],
    "dorsal_attention": [(-26, -58, 54), (26, -58, 54), (-26, -4, 56), (26, -4, 56)],
    "salience": [(-36, 18, 0), (36, 18, 0), (0, 18, 42)],
    "limbic": [(-26, 6, -28), (26, 6, -28), (0, 24, -18)],
    "frontoparietal": [(-44, 34, 24), (44, 34, 24), (-46, -52, 46), (46, -52, 46)],
    "default_core": [(0, -54, 28), (0, 52, -2), (-46, -66, 34), (46, -66, 34)],
    "default_temporal": [(-58, -12, -18), (58, -12, -18), (0, 52, 26)],
    "cerebellum": [(-28, -66, -34), (28, -66, -34)],
}
_AGE_GAIN = {"default_core": -0.35, "somatomotor_hand": 0.30, "frontoparietal": -0.25, "visual_medial": 0.20}
_SEX_GAIN = {"salience": 0.15, "default_temporal": -0.15}
_CUTOFF_HZ, _AGE_CUTOFF = 0.08, -0.5
_NETWORK_WIDTH_MM = 26.0
_LOCAL_WIDTH_MM = 18.0
_N_LOCAL = 48


@dataclass(frozen=True)
class SimulatedSite:
    """A hospital: its people and its scanner."""

    name: str
    """Name of the site; its scanner's fingerprint follows from the name and the seed."""
    n_participants: int = 40
    """People with one recording each."""
    t_r: float = 2.0
    """Repetition time in seconds."""
    n_frames: int = 240
    """Frames a recording."""
    mean_age: float = 45.0
    """Of the site's people, in years."""
    sd_age: float = 14.0
    """Spread of their ages, which are kept between 18 and 85."""
    fraction_female: float = 0.5
    """Chance that a person is female."""
    site_effect: float = 1.0
    """Size of the scanner's fingerprint; 0 for none, 1 for one that a classifier finds with ease."""
    age_effect: float = 1.0
    """Size of the effect of age; 0 for none."""
    sex_effect: float = 1.0
    """Size of the effect of sex; 0 for none."""


@dataclass(frozen=True)
class Person:
    """A simulated participant: age in years, sex F or M, mean FD in mm."""

    participant_id: str
    age: float
    sex: str
    mean_fd: float


@dataclass(frozen=True)
class _Scanner:
    """The fingerprint of a site."""

    network_gain: np.ndarray  # [K]
    noise: np.ndarray  # [P] sd in percent
    smoothness: float  # time constant of the temporal smoothing of noise, in seconds
    global_gain: float
    bandwidth: float  # factor on the haemodynamic cut-off: filters of the scanner's reconstruction


def simulated_hospitals(
    n_sites: int = 4, n_participants: int = 40, minutes: float = 6.0, **effects: float
) -> list[SimulatedSite]:
    """Hospitals that differ in size, TR and age: a cohort in which site and age are confounded.

    Parameters
    ----------
    n_participants : int
        Mean number of participants a site; sites differ by up to a third.
    minutes : float
        Length of a recording.
    effects : float
        site_effect, age_effect and sex_effect, as in `SimulatedSite`.
    """
    known = ["aalborg", "bergen", "coimbra", "delft", "evora", "freiburg", "ghent", "heraklion"]
    names = [*known, *(f"hospital-{number:02d}" for number in range(len(known) + 1, n_sites + 1))]
    kinds = cycle([(1.3, 2.0, 34.0, 0.45), (1.0, 1.5, 52.0, 0.55), (0.7, 2.5, 44.0, 0.6), (1.0, 0.8, 60.0, 0.4)])
    return [
        SimulatedSite(
            name=name,
            n_participants=max(2, round(n_participants * size)),
            t_r=t_r,
            n_frames=round(minutes * 60 / t_r),
            mean_age=age,
            fraction_female=female,
            **effects,
        )
        for name, (size, t_r, age, female) in zip(names[:n_sites], kinds, strict=False)
    ]


def simulate_cohorts(
    out: str | Path,
    sites: list[SimulatedSite],
    *,
    atlas: Atlas | str,
    seed: int,
    vectors: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write one cohort a site into folder `out`, which must be new.

    Parameters
    ----------
    sites : list of SimulatedSite
        The hospitals, with different names.
    seed : int
        The same seed, sites and atlas give the same bytes.
    vectors : int
        Dimensions of a second table, ``genes``, of the same participants; 0 for none.
    progress : callable
        Called with the recordings done and their total.
    """
    atlas = load_atlas(atlas) if isinstance(atlas, str) else atlas
    total, done = sum(site.n_participants for site in sites), 0
    with atomic_folder(Path(out)) as partial:
        for site in sites:
            people = simulate_people(site, seed)
            cohort = Cohort.create(
                partial / site.name,
                atlas=atlas,
                participants=pd.DataFrame([asdict(person) for person in people]),
                preprocessing="simulated",
            )
            for person in people:
                cohort.add(simulate_recording(site, person, atlas, seed))
                done += 1
                progress(done, total)
            cohort.save()
            if vectors:
                save_vectors(cohort, simulate_vectors(site, people, vectors, seed), "genes")
    return [Path(out) / site.name for site in sites]


def simulate_people(site: SimulatedSite, seed: int) -> list[Person]:
    """Draw the people of a site."""
    rng = np.random.default_rng(derive_seed(seed, site.name, "people"))
    n = site.n_participants
    age = np.clip(rng.normal(site.mean_age, site.sd_age, n), 18, 85).round(1)
    female = rng.random(n) < site.fraction_female
    # Older people move more; the spread is log-normal, as in real samples.
    mean_fd = (0.12 * np.exp(0.01 * (age - 45) + rng.normal(0, 0.4, n))).round(4)
    return [
        Person(
            participant_id=f"sub-{site.name.replace('-', '')}{index + 1:03d}",
            age=float(age[index]),
            sex="F" if female[index] else "M",
            mean_fd=float(mean_fd[index]),
        )
        for index in range(n)
    ]


def simulate_vectors(site: SimulatedSite, people: list[Person], n_dimensions: int, seed: int) -> Vectors:
    """Simulate gene vectors of a site's people: what sets the gains of their networks, noise, and the site's descent.

    The inborn part of the gains, which recordings carry, explains a fifth of a vector's variance within a site.
    """
    effects = np.random.default_rng(1).normal(size=(len(NETWORKS), n_dimensions)) / math.sqrt(len(NETWORKS))
    descent = np.random.default_rng(derive_seed(seed, site.name, "descent")).normal(0, 0.5, n_dimensions)
    rows = []
    for person in people:
        noise = np.random.default_rng(derive_seed(seed, site.name, person.participant_id, "genes"))
        inborn = _inborn(np.random.default_rng(derive_seed(seed, site.name, person.participant_id, "sources")))
        rows.append(descent + inborn @ effects / 2 + noise.normal(size=n_dimensions))
    return Vectors([person.participant_id for person in people], np.stack(rows))


def simulate_recording(site: SimulatedSite, person: Person, atlas: Atlas, seed: int) -> Recording:
    """Record one person of a site in one atlas."""
    identity = person.participant_id
    latent = np.random.default_rng(derive_seed(seed, site.name, identity, "sources"))
    measured = np.random.default_rng(derive_seed(seed, site.name, identity, "noise", atlas.name))
    scanner = _scanner(site, atlas, seed)
    maps, local_maps = _maps(atlas)

    gains = _gains(site, person, latent) * scanner.network_gain
    cutoff = _CUTOFF_HZ * scanner.bandwidth * math.exp(site.age_effect * _AGE_CUTOFF * (person.age - 45) / 20)
    networks = _coloured(latent, len(NETWORKS), site, slope=0.6, cutoff=cutoff)
    local = _coloured(latent, _N_LOCAL, site, slope=0.3, cutoff=cutoff)
    global_signal = _coloured(latent, 1, site, slope=0.8, cutoff=cutoff)
    signal = (gains * networks) @ maps + 0.45 * local @ local_maps + 0.35 * scanner.global_gain * global_signal

    noise = _smooth(measured.normal(size=signal.shape), scanner.smoothness, site.t_r) * scanner.noise
    spikes = measured.random((site.n_frames, 1)) < 0.04
    motion = spikes * measured.normal(size=(site.n_frames, 1)) * 2.0 * person.mean_fd / 0.2
    percent = signal + noise + motion
    baseline = 900 + 200 * np.cos(atlas.coordinates[:, 2] / 40)
    bold = (baseline * (1 + percent / 100)).astype(np.float32)
    return Recording(identity, bold, site.t_r, mean_fd=person.mean_fd, tsnr=temporal_snr(bold))


def _inborn(rng: np.random.Generator) -> np.ndarray:
    """Draw what sets one person's networks apart [K], first of all that is drawn of a person's sources."""
    return rng.normal(size=len(NETWORKS))


def _gains(site: SimulatedSite, person: Person, rng: np.random.Generator) -> np.ndarray:
    """Strength of each network [K] in one person."""
    gains = np.exp(0.12 * _inborn(rng))
    for index, network in enumerate(NETWORKS):
        gains[index] *= math.exp(site.age_effect * _AGE_GAIN.get(network, 0.0) * (person.age - 45) / 20)
        gains[index] *= math.exp(site.sex_effect * _SEX_GAIN.get(network, 0.0) * (1 if person.sex == "F" else -1))
    return gains


def _scanner(site: SimulatedSite, atlas: Atlas, seed: int) -> _Scanner:
    rng = np.random.default_rng(derive_seed(seed, site.name, "scanner"))
    strength = site.site_effect
    network_gain = np.exp(0.25 * strength * rng.normal(size=len(NETWORKS)))
    direction = rng.normal(size=3)
    # The coil hears one side of the head better: noise varies smoothly over the brain.
    profile = atlas.coordinates @ (direction / np.linalg.norm(direction)) / 60
    return _Scanner(
        network_gain=network_gain,
        noise=0.8 * np.exp(0.3 * strength * (profile + rng.normal())),
        smoothness=1.5 * math.exp(0.5 * strength * rng.normal()),
        global_gain=math.exp(0.4 * strength * rng.normal()),
        bandwidth=math.exp(0.5 * strength * rng.normal()),
    )


def _maps(atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the networks [K, P] and of the local sources [L, P] at every parcel."""
    networks = np.stack([_bumps(atlas, np.array(places), _NETWORK_WIDTH_MM) for places in NETWORKS.values()])
    places = np.random.default_rng(0).uniform((-60, -95, -40), (60, 65, 70), (_N_LOCAL, 3))
    local = np.stack([_bumps(atlas, place[None], _LOCAL_WIDTH_MM) for place in places])
    return networks, local


def _bumps(atlas: Atlas, centres: np.ndarray, width: float) -> np.ndarray:
    """Largest of Gaussian bumps at `centres` [M, 3], at every parcel [P]."""
    squared = ((atlas.coordinates[:, None] - centres[None]) ** 2).sum(axis=-1)
    return np.exp(-squared / (2 * width**2)).max(axis=1)


def _coloured(rng: np.random.Generator, n: int, site: SimulatedSite, slope: float, cutoff: float) -> np.ndarray:
    """Independent series [T, n] of unit variance, spectrum 1/f^slope x haemodynamic response up to `cutoff` Hz."""
    frequency = np.fft.rfftfreq(site.n_frames, site.t_r)
    haemodynamic = 1 / (1 + (frequency / cutoff) ** 4)
    amplitude = haemodynamic / np.maximum(frequency, 0.005) ** slope
    amplitude[0] = 0
    spectrum = amplitude[:, None] * (rng.normal(size=(frequency.size, n)) + 1j * rng.normal(size=(frequency.size, n)))
    series = np.fft.irfft(spectrum, n=site.n_frames, axis=0)
    return series / series.std(axis=0)


def _smooth(noise: np.ndarray, time_constant: float, t_r: float) -> np.ndarray:
    """First-order autoregressive smoothing of white noise [T, P], at unit variance."""
    memory = math.exp(-t_r / time_constant)
    driving = math.sqrt(1 - memory**2) * noise
    driving[0] = noise[0]  # the first frame has its variance from the start
    return lfilter([1.0], [1.0, -memory], driving, axis=0)
