"""Small stores made of well-known RNAs and simulated families."""

import numpy as np
import pytest

from rinalmo.data.store import StoreWriter, TokenStore

SOURCES = ["rfam", "rnacentral", "ensembl"]
FAMILIES = ["", "RF00001", "RF00005"]


def random_rna(rng, length):
    return bytes(rng.choice(np.frombuffer(b"ACGU", dtype=np.uint8), length))


def write_store(path, clusters, validation=()):
    """A store of clusters, each a list of (letters, source, family) or of letters."""
    with StoreWriter(path, sources=SOURCES, families=FAMILIES, provenance={"made": "by a test"}) as writer:
        count = 0
        for split, group in (("train", clusters), ("validation", validation)):
            for cluster in group:
                writer.start_cluster(split)
                for member in cluster:
                    letters, source, family = (member, 0, 0) if isinstance(member, bytes) else member
                    writer.add(f"seq{count}", letters, source, family)
                    count += 1
    return TokenStore.open(path)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory):
    """300 train clusters of 1 to 9 members of 16 to 1500 nt, three sources; 40 validation clusters."""
    rng = np.random.default_rng(7)

    def cluster(number):
        size = 1 + number % 9
        return [
            (random_rna(rng, int(rng.integers(16, 1500 if number % 10 == 0 else 150))), i % 3, number % 3)
            for i in range(size)
        ]

    clusters = [cluster(number) for number in range(340)]
    return write_store(tmp_path_factory.mktemp("stores") / "small", clusters[:300], clusters[300:])


@pytest.fixture
def make_store(tmp_path):
    """Makes a store from clusters of letters, or of (letters, source, family)."""
    return lambda *clusters, validation=(), name="store": write_store(tmp_path / name, clusters, validation)


@pytest.fixture(scope="session")
def families():
    """Twelve simulated families of 20 sequences around 150 nt, and the family of each; members are mutated copies."""
    rng = np.random.default_rng(11)
    sequences, family = [], []
    for number in range(12):
        parent = np.frombuffer(random_rna(rng, int(rng.integers(120, 200))), dtype=np.uint8)
        for _ in range(20):
            changed = rng.random(len(parent)) < 0.04
            letters = np.where(changed, rng.choice(np.frombuffer(b"ACGU", dtype=np.uint8), len(parent)), parent)
            sequences.append(letters.tobytes().decode())
            family.append(number)
    return sequences, family
