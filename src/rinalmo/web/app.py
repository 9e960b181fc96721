"""The web app in Gradio: tabs for visitors and endpoints with plain data for programs.

Figures are `<img>` elements whose source is their data: nothing in a figure can run or load anything.
"""

from __future__ import annotations

import base64
import csv
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from rinalmo.errors import InputError, RinalmoError
from rinalmo.inference.embed import Embeddings, common_fields, pack_embeddings, read_embeddings, write_embeddings
from rinalmo.inference.fill_mask import Prediction
from rinalmo.io.files import atomic_write
from rinalmo.io.sequences import Record, read_fasta
from rinalmo.plots import draw_arcs, draw_logo, draw_pair_map, heat_map, svg
from rinalmo.plots.drawing import structure_svg
from rinalmo.plots.embedding_map import draw_embedding_map
from rinalmo.plots.logo import LETTER_COLOURS
from rinalmo.plots.style import BLACK, GREY, PALE
from rinalmo.web.service import (
    EMBED,
    EMBED_TOGETHER,
    FILL_MASK,
    FOLD,
    LOGO,
    MASKS,
    METHODS,
    ONE_PASS,
    SEQUENCES,
    VARIANTS,
    FoldedRna,
    Progress,
    Service,
    Visit,
    with_question_marks,
)
from rinalmo.weights.catalog import ASSETS

AT_ONCE = 4
"""Requests that are answered at once, batch by batch in turn."""

SESSIONS = 200
"""Visitors whose state is kept (0.1 MB each) although they did not say that they left."""

WAITING = 60
"""Requests that may wait; more are refused, to be sent again later."""

STYLE = """
.picture { background: white; border-radius: 4px; overflow-x: auto; }
.picture img { max-width: 100%; margin: auto; display: block; }
#heat img { max-width: max(100%, 900px); }
textarea { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace !important; }
footer .divider { display: none; }
"""
NO_FIELD = "nothing"

Answer = dict[str, Any]

_EXAMPLES = ASSETS / "examples"
_TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
_ERROR_SECONDS = 20
_WEIGHT_INFO = "Leave it empty for the default, which is best. 0: the model alone; 1: ViennaRNA alone"
_IMAGE_TYPES = {"svg": "svg+xml", "png": "png"}
# Of the bars, in pixels.
_ROW, _HEADING, _START, _BAR_WIDTH, _WIDTH = 22, 34, 70, 300, 460

_COMPUTING: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": AT_ONCE}
_BUTTON: dict[str, Any] = {**_COMPUTING, "api_visibility": "private"}
_SMALL: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 140}
_INSTANT: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def image(content: str | bytes, alternative: str, format: str = "svg") -> str:
    """HTML of a figure, with a text for those who cannot see it."""
    data = base64.b64encode(content.encode() if isinstance(content, str) else content).decode()
    source = f"data:image/{_IMAGE_TYPES[format]};base64,{data}"
    return f'<div class="picture"><img alt="{escape(alternative)}" src="{source}"></div>'


def bars(masks: Sequence[Sequence[Prediction]]) -> str:
    """SVG of the candidates at each mask: a bar each, as long as it is probable."""
    parts: list[str] = []
    left = {"text_anchor": "start", "fill": BLACK}
    name = {"text_anchor": "end", "font_size": 13, "fill": BLACK}
    y = 0
    for candidates in masks:
        parts.append(svg.text(f"position {candidates[0].position}", np.array([12.0, y + 20.0]), font_size=14, **left))
        y += _HEADING
        for candidate in candidates:
            parts.append(svg.text(candidate.token_str, np.array([_START - 8.0, y + 9.0]), **name))
            bar = {"x": _START, "y": y, "height": _ROW - 5}
            parts.append(svg.element("rect", width=_BAR_WIDTH, fill=PALE, fill_opacity=0.5, **bar))
            colour = LETTER_COLOURS.get(candidate.token_str, GREY)
            parts.append(svg.element("rect", width=f"{_BAR_WIDTH * candidate.score:.1f}", fill=colour, **bar))
            score = f"{candidate.score:.4f}" if candidate.score >= 0.0001 else "< 0.0001"
            parts.append(svg.text(score, np.array([_START + _BAR_WIDTH + 10.0, y + 9.0]), font_size=13, **left))
            y += _ROW
    return svg.page(_WIDTH, y + 8, parts)


def nearest_neighbours(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other vector of each by cosine, after centring, and the cosine; of a single one itself and 1."""
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    if len(vectors) > 1:
        np.fill_diagonal(cosine, -np.inf)
    best = cosine.argmax(axis=1)
    return best, (cosine[np.arange(len(best)), best] if len(vectors) > 1 else np.ones(1))


def colour_fields(embeddings: Embeddings) -> dict[str, list[str]]:
    """What may colour a map, by name: fields of the headers, the name up to its first - _ | : or /, and so on.

    A field with the same value everywhere, or another one for each sequence, is left out, but for the length. The last
    is "nothing".
    """
    ids, descriptions = embeddings.ids, embeddings.descriptions or [""] * len(embeddings.ids)
    fields = {
        **common_fields(ids, descriptions),
        "start of the name": [re.split(r"[-_|:/]", id.lstrip("-_|:/"))[0] for id in ids],
        "description": descriptions,
    }
    useful = {name: values for name, values in fields.items() if 1 < len(set(values)) < len(values)}
    return {**useful, "length": [str(length) for length in embeddings.lengths], NO_FIELD: [""] * len(ids)}


def web_app(service: Service, model: str, fold_model: str) -> gr.Blocks:
    """The whole app, with its queue and API; the names of the models are written in it."""
    with gr.Blocks(title="RiNALMo", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        about = f"The RNA language model, here {_code(model)}. What you enter goes to this server and nowhere else."
        gr.Markdown(f"# RiNALMo\n{about}")
        _api(service)  # first: a button's function of the same name would take the name
        with gr.Tab("Fill mask", id="fill"):
            _fill_mask_tab(service)
        with gr.Tab("Fold", id="fold"):
            _fold_tab(service, fold_model)
        with gr.Tab("Embed", id="embed"):
            _embed_tab(service)
        with gr.Tab("Variants", id="variants"):
            _variants_tab(service)

        async def leave(request: gr.Request) -> None:  # on the event loop, as everything else that changes sessions
            session = request.session_hash or ""
            service.turns.leave(session)
            # Gradio itself would keep them, without what is in them, until there are too many.
            blocks.state_holder.session_data.pop(session, None)
            blocks.state_holder.time_last_used.pop(session, None)

        blocks.unload(leave)
    blocks.state_session_capacity = SESSIONS
    return blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def theme() -> gr.themes.Base:
    """Fonts of the visitor's machine: none is downloaded."""
    fonts = {"font": ["system-ui", "Arial", "sans-serif"], "font_mono": ["DejaVu Sans Mono", "monospace"]}
    return gr.themes.Default(**fonts)  # type: ignore[arg-type]


def _fill_mask_tab(service: Service) -> None:
    gr.Markdown(
        f"Predict masked nucleotides: one RNA or DNA, up to {FILL_MASK:,} nt with {MASKS} masks; "
        f"the logo, for which each position is masked in turn, up to {LOGO} nt."
    )
    box = _box("RNA with <mask>", "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")
    examples = _examples(box, "model_card_masks.fa", "HIV-1", "microRNA-21")
    heights = gr.Radio(["probability", "information"], value="probability", label="Heights in the logo")
    run = gr.Button("Predict", variant="primary")
    candidates_html = gr.HTML(label="Candidates", elem_id="bars")
    logo = gr.HTML(label="Logo", elem_id="logo")

    def candidates(text: str, request: gr.Request) -> tuple[str, str]:
        with _visit(service, request) as visit:
            record, masks = service.fill_mask(visit, text)
            return image(bars(masks), f"Candidates at {len(masks)} masks of {record.id}"), ""

    def whole(text: str, heights: Any, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        with _visit(service, request) as visit:
            record, probabilities = service.masked_in_turn(visit, text, _bar(progress))
            path, letters = service.new_folder() / "logo.svg", with_question_marks(record)
            visit.turn(lambda: draw_logo(probabilities, letters, path, name=record.id, heights=heights))
            return image(path.read_bytes(), f"Logo of {record.id}")

    for start in (run.click, *examples):
        computed = start(candidates, box, [candidates_html, logo], **_BUTTON)
        computed.success(whole, [box, heights], logo, **_BUTTON)


def _fold_tab(service: Service, fold_model: str) -> None:
    gr.Markdown(
        f"Predict the secondary structure: one RNA or DNA, up to {FOLD} nt, folded by {_code(fold_model)}; "
        "pseudoknots are drawn dashed."
    )
    box = _box("RNA", _TRNA)
    examples = _examples(box, "well_known_rnas.fa", "tRNA-Phe", "add_riboswitch")
    choices = [("nested: no pseudoknots", "nested"), ("greedy, as the paper", "greedy")]
    with gr.Row():
        decoder = gr.Radio(choices, value=service.decoder, label="Choice of pairs")
        weight = gr.Number(None, minimum=0, maximum=1, label="Weight of thermodynamics (ViennaRNA)", info=_WEIGHT_INFO)
    run = gr.Button("Fold", variant="primary")
    text = gr.Textbox(label="Dot-bracket", lines=3, elem_id="dot-bracket", buttons=["copy"], visible=False)
    with gr.Row():
        drawing = gr.HTML(elem_id="drawing")
        pair_map = gr.HTML(elem_id="pair-map")
    arcs = gr.HTML(elem_id="arcs")
    files = _files("fold-files")

    def fold(rna: str, decoder: str, weight: float | None, request: gr.Request) -> Any:
        with _visit(service, request) as visit:
            folded = service.fold(visit, rna, decoder, weight)
            paths = _write_fold(folded, service.new_folder(), visit)
            drawing, arcs, pair_map = (path.read_bytes() for path in paths[2:])
            name = folded.structure.name
            images = [
                image(drawing, f"Drawing of {name}"),
                image(pair_map, f"Pair probabilities of {name}", "png"),
                image(arcs, f"Arcs of {name}"),
            ]
            return gr.Textbox(folded.text("dbn"), visible=True), *images, gr.File([*map(str, paths)], visible=True)

    for start in (run.click, *examples):
        start(fold, [box, decoder, weight], [text, drawing, pair_map, arcs, files], **_BUTTON)


def _write_fold(folded: FoldedRna, folder: Path, visit: Visit) -> list[Path]:
    names = ("structure.dbn", "structure.ct", "drawing.svg", "arcs.svg", "map.png")
    structure, paths = folded.structure, [folder / name for name in names]
    for path in paths[:2]:
        with atomic_write(path) as file:
            file.write(folded.text(path.suffix[1:]).encode())
    paths[2].write_text(structure_svg(structure, folded.probabilities), encoding="utf-8")
    visit.turn(lambda: draw_arcs(structure, paths[3]))  # matplotlib draws one figure at a time
    visit.turn(lambda: draw_pair_map(structure, folded.probabilities, paths[4]))
    return paths


def _embed_tab(service: Service) -> None:
    gr.Markdown(
        f"A vector for each sequence. FASTA, or one sequence a line: up to {SEQUENCES:,} sequences of up to "
        f"{EMBED:,} nt, {EMBED_TOGETHER:,} nt together. A file may be compressed."
    )
    with gr.Row():
        box = _box("FASTA", ">name and what it is\nGGGAAACCC", lines=8)
        upload = gr.File(label="or a FASTA file", file_count="single", elem_id="upload", height=200)
    with gr.Row():
        example = gr.Button("Well-known RNAs", **_SMALL)
    run = gr.Button("Embed", variant="primary")
    colour = gr.Dropdown([NO_FIELD], label="Colour of the map", visible=False, elem_id="colour")
    map_html = gr.HTML(elem_id="map")
    table = gr.Dataframe(label="Sequences", interactive=False, elem_id="table", max_height=300, visible=False)
    files = _files("embed-files")
    folder = gr.State(None)  # of the last answer's files, from which the map is drawn again

    def embed(text: str, path: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _visit(service, request) as visit:
            records, vectors = service.embed(visit, text, None if path is None else Path(path), _bar(progress))
            neighbours, cosine = nearest_neighbours(vectors)
            rows = pd.DataFrame(
                {
                    "name": [record.id for record in records],
                    "nt": [len(record.sequence) for record in records],
                    "nearest": [records[n].id for n in neighbours],
                    "cosine": np.round(cosine.astype(float), 3),
                    "description": [record.description for record in records],
                }
            )
            folder = service.new_folder()
            written = _write_embeddings(records, vectors, folder)
            choices, map_image = _draw_map(visit, folder, None)
            if map_image:
                written.append(folder / "map.svg")
            return (
                gr.Dropdown(choices, value=choices[0], visible=bool(map_image)),
                map_image,
                gr.Dataframe(rows, visible=True),
                gr.File([str(path) for path in written], visible=True),
                folder,
            )

    def colour_again(folder: Path | None, field: str, request: gr.Request) -> str:
        with _visit(service, request) as visit:
            return _draw_map(visit, folder, field)[1]

    text = (_EXAMPLES / "well_known_rnas.fa").read_text(encoding="utf-8")
    after_example = example.click(lambda: (text, None), None, [box, upload], **_INSTANT).then
    for start in (run.click, after_example):
        start(embed, [box, upload], [colour, map_html, table, files, folder], **_BUTTON)
    colour.input(colour_again, [folder, colour], map_html, **_BUTTON)


def _write_embeddings(records: list[Record], vectors: np.ndarray, folder: Path) -> list[Path]:
    """The vectors as CSV, npz and Parquet."""
    paths = [folder / f"embeddings.{ending}" for ending in ("csv", "npz", "parquet")]
    chunk = pack_embeddings(list(zip(records, vectors, strict=True)))
    for path in paths[1:]:
        write_embeddings(path, lambda *names: iter([chunk]), folder)
    with paths[0].open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "description", "length", *(f"dim_{n}" for n in range(vectors.shape[1]))])
        for record, vector in zip(records, vectors, strict=True):
            rows.writerow([record.id, record.description, len(record.sequence), *(f"{value:.7g}" for value in vector)])
    return paths


def _draw_map(visit: Visit, folder: Path | None, field: str | None) -> tuple[list[str], str]:
    """The fields that may colour the map of an answer, and its image by one, or the first; "" for one point."""
    if folder is None or not (folder / "embeddings.parquet").exists():
        raise InputError("these embeddings are no longer here; embed them again")
    embeddings, path = read_embeddings(folder / "embeddings.parquet"), folder / "map.svg"
    fields = colour_fields(embeddings)
    if len(embeddings.ids) < 2:
        return list(fields), ""
    field = field or next(iter(fields))
    labels = None if field == NO_FIELD else fields[field]
    visit.turn(lambda: draw_embedding_map(embeddings.values, path, labels, label_name=field))
    return list(fields), image(path.read_bytes(), f"Map of {len(embeddings.ids)} sequences")


def _variants_tab(service: Service) -> None:
    gr.Markdown(
        "Score single-nucleotide substitutions against the RNA as it is: 0 is as likely, red less, blue more. "
        f"Up to {VARIANTS} nt with each position masked in turn, {ONE_PASS:,} nt in one pass."
    )
    box = _box("RNA", _TRNA)
    examples = _examples(box, "well_known_rnas.fa", "tRNA-Phe", "HIV-1_TAR")
    choices = [("each position masked", METHODS[0]), ("one pass", METHODS[1])]
    method = gr.Radio(choices, value=METHODS[0], label="Method")
    run = gr.Button("Score", variant="primary")
    heat_map_html = gr.HTML(elem_id="heat")
    files = _files("variant-files")

    def score(text: str, method: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _visit(service, request) as visit:
            record, scores = service.variants(visit, text, method, _bar(progress))
            folder = service.new_folder()
            figure, table = folder / "variants.svg", folder / "variants.csv"
            title = f"{record.id[:60]}, {method}"
            visit.turn(lambda: heat_map.draw(scores, record.sequence, title, figure))
            # The columns of `rinalmo score --all-single`, but for the record.
            lines = ["mutant,position,wild_type,letter,score"]
            for place, old in enumerate(record.sequence):
                for column, new in enumerate("ACGU"):
                    if new != old and np.isfinite(scores[place, column]):
                        lines.append(f"{old}{place + 1}{new},{place + 1},{old},{new},{scores[place, column]:.6f}")
            table.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
            html = image(figure.read_bytes(), f"Scores of single mutations of {record.id}")
            return html, gr.File([str(table), str(figure)], visible=True)

    for start in (run.click, *examples):
        start(score, [box, method], [heat_map_html, files], **_BUTTON)


def _api(service: Service) -> None:
    """Endpoints with plain data in and out, named as the commands."""

    def fill_mask(request: gr.Request, sequence: str, top_k: int = 5, each_position: bool = False) -> Answer:
        """Candidates at each <mask> (position, letter, probability, sequence), best first.

        With each_position also the probabilities of A, C, G and U at each position, masked in turn.
        """
        with _visit(service, request, is_api=True) as visit:
            record, masks = service.fill_mask(visit, _text(sequence), _number("top_k", top_k, whole=True))
            answer: Answer = {"sequence": record.sequence, "masks": [[vars(c) for c in mask] for mask in masks]}
            if each_position:
                answer["probabilities"] = service.masked_in_turn(visit, sequence)[1].tolist()
            return answer

    def fold(
        request: gr.Request, sequence: str, decoder: str | None = None, thermodynamics: float | None = None
    ) -> Answer:
        """The structure as dot-bracket text, as pairs [i, j, probability] (from 1), as DBN and as CT.

        `thermodynamics`, from 0 to 1, is the weight of ViennaRNA's probabilities beside the model's; null: the default.
        """
        with _visit(service, request, is_api=True) as visit:
            weight = None if thermodynamics is None else _number("thermodynamics", thermodynamics)
            folded = service.fold(visit, _text(sequence), decoder, weight)
            structure, probabilities = folded.structure, folded.probabilities
            return {
                "name": structure.name,
                "sequence": structure.sequence,
                "dot_bracket": structure.dot_bracket,
                "pairs": [[i + 1, j + 1, float(probabilities[i, j])] for i, j in structure.pairs],
                "dbn": folded.text("dbn"),
                "ct": folded.text("ct"),
            }

    def embed(request: gr.Request, fasta: str) -> Answer:
        """Ids, descriptions and lengths of the sequences of FASTA text, and their embeddings: a list for each."""
        with _visit(service, request, is_api=True) as visit:
            records, vectors = service.embed(visit, _text(fasta))
            return {
                "ids": [record.id for record in records],
                "descriptions": [record.description for record in records],
                "lengths": [len(record.sequence) for record in records],
                "embeddings": vectors.tolist(),
            }

    def variants(request: gr.Request, sequence: str, method: str = METHODS[0]) -> Answer:
        """Scores of all single-nucleotide substitutions: A, C, G and U at each position, null where there is none."""
        with _visit(service, request, is_api=True) as visit:
            record, scores = service.variants(visit, _text(sequence), method)
            rows = [[None if np.isnan(score) else score for score in row] for row in scores.tolist()]
            return {"sequence": record.sequence, "letters": "ACGU", "scores": rows}

    for function in (fill_mask, fold, embed, variants):
        gr.api(function, api_name=function.__name__, **_COMPUTING)


def _text(value: Any) -> str:
    """The API accepts any JSON."""
    if not isinstance(value, str):
        raise gr.Error(f"a {type(value).__name__} came where a text is expected", print_exception=False)
    return value


def _number(name: str, value: Any, *, whole: bool = False) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise gr.Error(f"{name} is a {type(value).__name__}; give {kind}", print_exception=False)
    return value


@contextmanager
def _visit(service: Service, request: gr.Request, *, is_api: bool = False) -> Iterator[Visit]:
    """A visit whose errors are one line. Gradio shows it in the browser as HTML, so it is escaped there."""
    try:
        with service.turns.visit(request.session_hash) as visit:
            yield visit
    except RinalmoError as error:
        line = " ".join(str(error).split())
        raise gr.Error(line if is_api else escape(line), duration=_ERROR_SECONDS, print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        traceback.print_exc()
        raise gr.Error("something went wrong here, and the server's log says what", print_exception=False) from None


def _bar(progress: gr.Progress) -> Progress:
    return lambda done, total: progress((done, total))


def _box(label: str, example: str, lines: int = 4) -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=example, lines=lines, max_lines=12, elem_classes="rna")


def _examples(box: gr.Textbox, file: str, *names: str) -> list[Callable[..., Any]]:
    """A button for each example, which writes it into the box; returns what registers a function to run after it."""
    records = {record.id: record for record in read_fasta(_EXAMPLES / file, allow_mask=True)}
    after: list[Callable[..., Any]] = []
    with gr.Row():
        for name in names:
            text = f">{name}\n{records[name].sequence}"
            button = gr.Button(name, **_SMALL)
            after.append(button.click(lambda text=text: text, None, box, **_INSTANT).then)
    return after


def _files(name: str) -> gr.File:
    return gr.File(label="Files", file_count="multiple", interactive=False, elem_id=name, visible=False)


def _code(name: str) -> str:
    return f"<code>{escape(name)}</code>"
