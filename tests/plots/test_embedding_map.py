"""Maps of embeddings: where the points lie, and what the picture says of them."""

import re
import sys

import numpy as np
import pytest

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.plots import draw_embedding_map
from rinalmo.plots.embedding_map import as_numbers, project
from rinalmo.plots.style import CLASS_COLOURS, CLASS_MARKERS

pytest.importorskip("matplotlib")


@pytest.fixture
def embeddings():
    """Two groups, far apart along one direction."""
    values = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    values[20:, 2] += 50
    return values


def texts(path):
    return re.findall(r">([^<>]+)</text>", path.read_text())


def test_pca_is_that_of_scikit_learn(embeddings):
    decomposition = pytest.importorskip("sklearn.decomposition")
    reference = decomposition.PCA(2).fit(embeddings)
    found = project(embeddings)
    np.testing.assert_allclose(np.abs(found.points), np.abs(reference.transform(embeddings)), atol=1e-3)
    shares = [f"PC {n} ({share:.0%} of the variance)" for n, share in enumerate(reference.explained_variance_ratio_, 1)]
    assert list(found.axes) == shares
    np.testing.assert_allclose(project(embeddings * np.float32(-1)).points, -found.points, atol=1e-3)


def test_the_groups_lie_apart_and_are_named(embeddings, tmp_path):
    labels = ["near"] * 20 + ["far $x$ <&>"] * 19 + [None]
    found = draw_embedding_map(embeddings, tmp_path / "map.svg", labels, label_name="group", title="A title")
    near, far = found.points[:20, 0], found.points[20:, 0]
    assert near.max() < far.min() or far.max() < near.min()
    assert {"near (20)", "far $x$ &lt;&amp;&gt; (19)", "not known (1)", "group", "A title"} <= set(
        texts(tmp_path / "map.svg")
    )


def test_twenty_classes_have_their_own_marks_and_rare_ones_are_put_together(tmp_path):
    labels = [f"class {n:02d}" for n in range(22) for _ in range(40 - n)]
    draw_embedding_map(np.random.default_rng(0).normal(size=(len(labels), 3)), tmp_path / "map.svg", labels)
    shown = [text for text in texts(tmp_path / "map.svg") if text.startswith("class")]
    assert shown == [f"class {n:02d} ({40 - n})" for n in range(20)]
    assert "2 others (39)" in texts(tmp_path / "map.svg")
    assert len(set(CLASS_COLOURS)) == len(CLASS_MARKERS) == 20


def test_many_numbers_are_a_scale(embeddings, tmp_path):
    assert as_numbers(["1", "2", "1"]) is None  # few different ones are classes
    assert as_numbers([*map(str, range(20)), "x"]) is None
    np.testing.assert_array_equal(as_numbers([*range(20), "", None]), [*range(20), np.nan, np.nan])
    draw_embedding_map(embeddings, tmp_path / "map.svg", [*range(39), ""], label_name="length")
    assert "length" in texts(tmp_path / "map.svg")
    assert not [text for text in texts(tmp_path / "map.svg") if text.endswith("(1)")]


def test_the_same_embeddings_give_the_same_bytes(embeddings, tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_embedding_map(embeddings, tmp_path / name, ["x", "y"] * 20)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw_embedding_map(embeddings, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_many_points_are_an_image(tmp_path):
    draw_embedding_map(np.random.default_rng(0).normal(size=(6000, 3)), tmp_path / "map.svg")
    assert (tmp_path / "map.svg").stat().st_size < 300_000
    assert "<image" in (tmp_path / "map.svg").read_text()


@pytest.mark.slow  # numba compiles
def test_umap_keeps_groups_together(embeddings, tmp_path):
    pytest.importorskip("umap")
    labels = ["near"] * 20 + ["far"] * 20
    found = draw_embedding_map(embeddings, tmp_path / "map.svg", labels, method="umap")
    centres = [found.points[:20].mean(axis=0), found.points[20:].mean(axis=0)]
    distances = [np.linalg.norm(found.points - centre, axis=1) for centre in centres]
    assert [*np.argmin(distances, axis=0)] == [0] * 20 + [1] * 20
    assert {"UMAP 1", "UMAP 2", "near (20)", "far (20)"} <= set(texts(tmp_path / "map.svg"))
    draw_embedding_map(embeddings, tmp_path / "again.svg", labels, method="umap")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "map.svg").read_bytes()
    assert np.isfinite(project(embeddings[:4], "umap").points).all()


def test_what_cannot_be_drawn(embeddings, tmp_path, monkeypatch):
    for values, options, words in (
        (embeddings[:1], {}, "needs at least 2 sequences"),
        (embeddings[None], {}, "one vector per sequence"),
        (embeddings, {"labels": ["x"]}, "1 labels do not fit 40"),
        (embeddings, {"method": "tsne"}, "'tsne' is unknown; use one of pca, umap"),
    ):
        with pytest.raises(InputError, match=words):
            draw_embedding_map(values, tmp_path / "map.svg", **options)
    with pytest.raises(InputError, match=r"use \.svg, \.png, \.pdf"):
        draw_embedding_map(embeddings, tmp_path / "map.gif")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"rinalmo\[umap\]"):
        draw_embedding_map(embeddings, tmp_path / "map.svg", method="umap")
    assert not list(tmp_path.iterdir())
