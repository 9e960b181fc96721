"""Parts of the web app without a server: turns, what may colour a map, files, and names in figures."""

import gzip
import threading
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.inference.embed import Embeddings
from rinalmo.inference.fill_mask import Prediction
from rinalmo.io.sequences import Record
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.plots import draw_arcs, draw_embedding_map, draw_logo, drawing
from rinalmo.plots.drawing import structure_svg
from rinalmo.plots.positions import draw_heat_map
from rinalmo.rna.structure import Structure
from rinalmo.web import app
from rinalmo.web.app import bars, image, write_fold
from rinalmo.web.service import GoneError, Service, Turns, many_records, one_record, text_of_file

EVIL = "\"'><script>alert(1)</script>$x_1"


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for(until):
    turns, order, threads = Turns(), [], []
    first_computes, first_ends = threading.Event(), threading.Event()

    def ask(name, before=lambda: None):
        def run():
            with turns.visit(name) as visit:
                visit.turn(lambda: (before(), order.append(name)))

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    ask("first", lambda: (first_computes.set(), first_ends.wait()))
    first_computes.wait(10)
    for name in "abcd":
        ask(name)
        until(lambda: turns.executor._work_queue.qsize() == len(threads) - 1)
    assert order == []
    first_ends.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "a", "b", "c", "d"]


def test_one_thread_computes_for_all():
    """Each other one would keep the memory of its largest batch."""
    turns, computing = Turns(), set()

    def ask():
        with turns.visit("a") as visit:
            visit.turn(lambda: computing.add(threading.get_ident()))
            list(visit.each(computing.add(threading.get_ident()) for _ in range(2)))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(computing) == 1


def test_who_leaves_and_a_stop_end_the_work():
    turns = Turns()
    with turns.visit("a") as a, turns.visit("b") as b:
        turns.leave("a")
        with pytest.raises(GoneError, match="the web app was closed"):
            next(a.each([1]))
        assert list(b.each([1, 2])) == [1, 2]
        turns.stop()
        with pytest.raises(GoneError, match="try again"):
            next(b.each([1]))


def test_an_error_in_a_turn_lets_the_next_one_in():
    turns = Turns()
    with turns.visit("a") as a:
        with pytest.raises(ZeroDivisionError):
            list(a.each(1 // n for n in (1, 0)))
        assert list(a.each([1])) == [1]


def embeddings(ids, descriptions=None):
    descriptions = descriptions or [""] * len(ids)
    return Embeddings(list(ids), descriptions, [4] * len(ids), np.eye(len(ids), 8, dtype=np.float32))


def test_fields_that_may_colour_a_map():
    found = app.colour_fields(embeddings(["tRNA-1", "tRNA-2", "U6"], ["kind=x of=a", "kind=x of=b", "kind=y of=c"]))
    assert found["kind"] == ["x", "x", "y"]
    assert found["start of the name"] == ["tRNA", "tRNA", "U6"]
    assert "of" not in found  # every sequence has its own
    assert list(found)[-2:] == ["length", app.NO_FIELD]
    assert list(app.colour_fields(embeddings(["a"]))) == ["length", app.NO_FIELD]


def test_nearest():
    place, cosine = app.nearest_neighbours(np.array([[1, 0.1], [1, 0], [-3, 0]]))
    assert place.tolist()[:2] == [1, 0]
    assert cosine[0] == cosine[1] > 0.9
    assert [each.tolist() for each in app.nearest_neighbours(np.ones((1, 4)))] == [[0], [1.0]]


class Attributes(HTMLParser):
    """The tags with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_a_picture_is_an_image_whatever_it_is_named():
    found = Attributes(image("<svg/>", EVIL)).found
    assert [tag for tag, _ in found] == ["div", "div", "button", "button", "button", "div", "img"]
    assert sorted(found[-1][1]) == ["alt", "src"]
    assert found[-1][1]["alt"] == EVIL


def test_a_fine_tuned_model_predicts(tmp_path):
    model = create(ModelSpec(ModelConfig(32, 2, 2), heads={"splice_site_head": {}}), seed=1)
    service = Service(Engine(model, "fp32", threads=1), Engine("nano-fold", "fp32", threads=1), tmp_path)
    assert (service.fills_masks, service.predicts) == (False, "splice-site")
    seen = []
    with service.turns.visit("a") as visit:
        found = service.predict(visit, ">a\nACGU\n>b\nGGGCCC", progress=lambda *done: seen.append(done))
    assert found == rinalmo.predict([Record("a", "", "ACGU"), Record("b", "", "GGGCCC")], model)
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("GG[MASK]CC", "GG<mask>CC"),
        ("GG_cc<MASK>", "GG<mask>CC<mask>"),
        ("GGNNCC", "GG<mask><mask>CC"),
        (">N_1 of NN\nGGNN\nCC", "GG<mask><mask>CC"),
        ("GGNC<mask>", "GGNC<mask>"),
    ],
)
def test_masks_as_others_write_them(text, read):
    assert one_record(text, 100, "fill-mask", allow_mask=True).sequence == read


def test_the_text_of_a_dropped_file(tmp_path):
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(b">a\nACGU\n"))
    assert text_of_file(tmp_path / "a.fa.gz") == ">a\nACGU\n"
    (tmp_path / "b").write_bytes(b">\xff\nACGU")
    with pytest.raises(InputError, match=r"^b is not UTF-8 text"):
        text_of_file(tmp_path / "b")
    (tmp_path / "wide").write_bytes(">a\nACGU".encode("utf-16"))
    with pytest.raises(InputError, match=r"^wide is UTF-16"):
        text_of_file(tmp_path / "wide")
    (tmp_path / "large.gz").write_bytes(gzip.compress(b"A" * 10**6))
    with pytest.raises(InputError, match="more than 500,000 bytes"):
        text_of_file(tmp_path / "large.gz")


def test_a_structure_without_a_layout_is_shown_all_the_same(tmp_path, monkeypatch):
    engine = Engine("nano-fold", "fp32", threads=1)
    service = Service(engine, engine, tmp_path)
    with service.turns.visit("a") as visit:
        folded = service.fold(visit, "GGGGGAAAACCCCC")
        paths, html = write_fold(folded, tmp_path, visit)
        assert ("<svg" in html, len(paths)) == (True, 9)
        monkeypatch.setattr(drawing, "_LAYOUT_SECONDS", 0)
        paths, html = write_fold(folded, tmp_path, visit)
    assert html == "<p>Not drawn: no layout without overlaps was found for these 14 nt; draw arcs or a map.</p>"
    assert [path.name for path in paths] == [
        *("structure.dbn", "structure.ct", "structure.csv"),
        *("map.svg", "map.png", "arcs.svg", "arcs.png"),
    ]


def drawn(tmp_path):
    """Each figure of the web app for a sequence with a name that would run, as (kind, SVG)."""
    structure = Structure(EVIL, "GGGAAACCC", ((0, 8), (1, 7)))
    yield "drawing", structure_svg(structure, structure.matrix().astype(float))
    draw_arcs(structure, tmp_path / "arcs.svg")
    draw_logo(np.full((4, 4), 0.25), "ACGU", tmp_path / "logo.svg", name=EVIL)
    draw_heat_map(np.zeros((4, 4)), "ACGU", EVIL, tmp_path / "heat.svg")
    draw_embedding_map(np.eye(3, 8), tmp_path / "map.svg", [EVIL, EVIL, "b"], label_name=EVIL)
    for name in ("arcs", "logo", "heat", "map"):
        yield name, (tmp_path / f"{name}.svg").read_text()
    yield "bars", bars([[Prediction(0.5, 0, EVIL, EVIL, 1)]])


def test_names_are_text_in_every_svg(tmp_path):
    for kind, svg in drawn(tmp_path):
        elements = list(ElementTree.fromstring(svg).iter())
        assert [e.tag for e in elements if e.tag.endswith(("script", "foreignObject"))] == [], kind
        links = [value for e in elements for key, value in e.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links), kind
        assert [key for e in elements for key in e.attrib if key.lower().startswith("on")] == [], kind
        assert any("<script>alert(1)" in (e.text or "") for e in elements), kind


@pytest.mark.parametrize(
    "text",
    [
        "gggguuuu aaaacccc",
        "        1 gggguuuu aaaa\n       13 cccc\n//",
        "ORIGIN\n        1 gggguuuuaa\n       11 aacccc\n//\n",
        "     gggguuuu aaaa        12\n     cccc         16\n",
        ">RNA\n        1 gggguuuuaa\n       11 aacccc\n",
    ],
)
def test_numbered_and_spaced_sequences(text):
    assert one_record(text, 100, "fold").sequence == "GGGGUUUUAAAACCCC"
    assert [record.sequence for record in many_records(text, None)] == ["GGGGUUUUAAAACCCC"]


def test_one_sequence_a_line():
    found = many_records("GGGG AAAA\n\nCCCC\n", None)
    assert [(record.id, record.sequence) for record in found] == [("1", "GGGGAAAA"), ("2", "CCCC")]
