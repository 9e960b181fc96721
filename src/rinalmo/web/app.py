"""The web app in Gradio: tabs for visitors and endpoints with plain data for programs.

Figures are `<img>` elements whose source is their data: nothing in a figure can run or load anything. The drawing of a
structure is SVG within the page, for the names of its nucleotides under the pointer; all text in it is escaped.
"""

from __future__ import annotations

import base64
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from rinalmo.errors import InputError, RinalmoError
from rinalmo.inference.embed import Embeddings, common_fields, pack_embeddings, read_embeddings, write_embeddings
from rinalmo.inference.fill_mask import Prediction
from rinalmo.io.sequences import Record, read_fasta
from rinalmo.io.tables import write_rows
from rinalmo.plots import draw_arcs, draw_logo, draw_pair_map, svg
from rinalmo.plots.drawing import structure_svg
from rinalmo.plots.embedding_map import draw_embedding_map
from rinalmo.plots.positions import LETTER_COLOURS, draw_heat_map
from rinalmo.plots.style import BLACK, GREY, PALE
from rinalmo.rna.formats import write_structures
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
    text_of_file,
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
.picture { background: white; border-radius: 4px; overflow: hidden; }
.picture .canvas { overflow-x: auto; transform-origin: center; touch-action: manipulation; }
.picture :is(img, svg) { max-width: 100%; height: auto; margin: auto; display: block; }
.picture .zoom { text-align: right; padding: 4px; position: relative; z-index: 1; background: white; }
.picture .zoom button { width: 2em; height: 2em; border: 1px solid #999; border-radius: 4px; }
.picture .zoom button { background: white; color: #222; padding: 0; line-height: 1; }
.picture .nucleotide:hover circle { stroke-width: 3; }
#heat img { max-width: max(100%, 900px); }
.message .problem { border-left: 4px solid #c0392b; padding: 0.4em 0.8em; overflow-wrap: anywhere; }
.dark { --color-accent: var(--primary-400); }
.message [data-testid="status-tracker"] svg { display: none; }
textarea { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace !important; }
footer .divider { display: none; }
"""
SCRIPT = f"<script>{Path(__file__).with_name('zoom.js').read_text(encoding='utf-8')}</script>"
NO_FIELD = "nothing"

Answer = dict[str, Any]

_EXAMPLES = ASSETS / "examples"
_TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
_ERROR_SECONDS = 20
_WEIGHT_INFO = "Leave empty for the default, which is best. 0: only the model; 1: only ViennaRNA"
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
    return _picture(f'<img alt="{escape(alternative)}" src="data:image/{_IMAGE_TYPES[format]};base64,{data}">')


def _picture(content: str) -> str:
    """A figure with buttons to enlarge it."""
    factors = (("+", 1.4, "Zoom in"), ("−", 1 / 1.4, "Zoom out"), ("⤢", 0, "Whole figure"))
    buttons = "".join(
        f'<button type="button" data-zoom="{factor}" title="{title}" aria-label="{title}">{sign}</button>'
        for sign, factor, title in factors
    )
    return f'<div class="picture"><div class="zoom">{buttons}</div><div class="canvas">{content}</div></div>'


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
        gr.Markdown(
            "# RiNALMo\nFold, embed and score RNAs with a language model. Your sequences stay on this server.\n\n"
            f"{_about(model)}"
        )
        _api(service)  # first: a button's function of the same name would take the name
        if service.predicts is not None:
            with gr.Tab("Predict", id="predict"):
                _predict_tab(service, model)
        with gr.Tab("Fold", id="fold"):
            _fold_tab(service, fold_model)
        if service.fills_masks:
            with gr.Tab("Fill mask", id="fill"):
                _fill_mask_tab(service)
        with gr.Tab("Embed", id="embed"):
            _embed_tab(service)
        if service.fills_masks:
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


def _about(model: str) -> str:
    """What the model knows, and how to use another one."""
    about = f"Masks, embeddings and variants: {_code(model)}"
    if model != "nano":
        return f"{about}."
    return (
        f"{about}, the small bundled model. It knows common RNA families and base pairs, but on unseen families it "
        f"gets only one masked nucleotide in three right. For research, start the app with "
        f"{_code('rinalmo web --model giga')}."
    )


def theme() -> gr.themes.Base:
    """Fonts of the visitor's machine, none is downloaded; colors with the contrast of 4.5:1 that WCAG asks."""
    fonts = {"font": ["system-ui", "Arial", "sans-serif"], "font_mono": ["DejaVu Sans Mono", "monospace"]}
    button = {f"button_primary_background_fill{state}": "*primary_700" for state in ("", "_dark")}
    button |= {f"button_primary_background_fill_hover{state}": "*primary_800" for state in ("", "_dark")}
    return gr.themes.Default(primary_hue="blue", **fonts).set(  # type: ignore[arg-type]
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        link_text_color_dark="*secondary_400",
        **button,
    )


Handler = Callable[..., Iterator[tuple[Any, ...]]]


def _connect(
    service: Service,
    handler: Handler,
    run: gr.Button,
    examples: Sequence[Callable[..., Any]],
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    """Run a handler from its button and after its examples, with a place for messages and a button to cancel it.

    Errors are a line below the input, and the answers of before are cleared. There is one progress bar.
    """
    with gr.Row():
        message = gr.HTML(elem_classes="message", min_height=64)
        cancel = gr.Button("Cancel", **_SMALL)

    @wraps(handler)
    def answer(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        try:
            for values in handler(*arguments):
                yield "", *values
        except gr.Error as error:
            yield f'<div class="problem" role="alert">{error.message}</div>', *map(_empty, outputs)

    def leave(request: gr.Request) -> str:
        service.turns.leave(request.session_hash)
        return ""

    options = {**_BUTTON, "show_progress_on": message}
    events: list[Any] = [start(answer, inputs, [message, *outputs], **options) for start in (run.click, *examples)]
    cancel.click(leave, None, message, cancels=events, **_INSTANT)


def _empty(part: Any) -> Any:
    """What clears an output."""
    if isinstance(part, gr.State):
        return None
    return "" if isinstance(part, gr.HTML | gr.Markdown) else gr.update(visible=False)


def _fill_mask_tab(service: Service) -> None:
    gr.Markdown(
        f"Predict masked nucleotides in one RNA or DNA of up to {FILL_MASK:,} nt with up to {MASKS} masks. The logo "
        f"masks one position at a time (up to {LOGO} nt). A mask is `<mask>`, `[MASK]` or `_`; in a sequence without "
        "these, each `N` is a mask."
    )
    box = _box("RNA with <mask>", "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")
    examples = _examples(box, "model_card_masks.fa", "HIV-1", "microRNA-21")
    heights = gr.Radio(["probability", "information"], value="probability", label="Heights in the logo")
    run = gr.Button("Predict", variant="primary")
    candidates, logo = gr.HTML(elem_id="bars", render=False), gr.HTML(elem_id="logo", render=False)
    files = _files("mask-files")

    def predict(text: str, heights: Any, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _visit(service, request) as visit:
            record, masks = service.fill_mask(visit, text)
            chart = image(bars(masks), f"Candidates at {len(masks)} masks of {record.id}")
            yield chart, "", gr.File(visible=False)
            record, probabilities = service.masked_in_turn(visit, text, _bar(progress))
            folder, letters = service.new_folder(), with_question_marks(record)
            paths = [folder / name for name in ("candidates.csv", "logo.svg", "logo.png")]
            rows = ({"position": c.position, "letter": c.token_str, "probability": c.score} for m in masks for c in m)
            write_rows(paths[0], rows)
            for path in paths[1:]:
                visit.turn(partial(draw_logo, probabilities, letters, path, name=record.id, heights=heights))
            yield chart, image(paths[1].read_bytes(), f"Logo of {record.id}"), _given(paths)

    _connect(service, predict, run, examples, [box, heights], [candidates, logo, files])
    for component in (candidates, logo, files):
        component.render()


def _fold_tab(service: Service, fold_model: str) -> None:
    gr.Markdown(
        f"Predict the secondary structure of one RNA or DNA of up to {FOLD} nt with {_code(fold_model)} and the "
        "defaults of `rinalmo fold`. Pseudoknots are drawn dashed. Hover over a nucleotide for its pairing probability."
    )
    box = _box("RNA", _TRNA)
    examples = _examples(box, "well_known_rnas.fa", "tRNA-Phe", "add_riboswitch")
    choices = [("nested: no pseudoknots", "nested"), ("greedy, as in the paper", "greedy")]
    with gr.Accordion("Options", open=False):
        decoder = gr.Radio(choices, value=service.decoder, label="Decoder")
        weight = gr.Number(None, minimum=0, maximum=1, label="Weight of thermodynamics (ViennaRNA)", info=_WEIGHT_INFO)
    run = gr.Button("Fold", variant="primary")

    def figures(folded: FoldedRna, folder: Path, visit: Visit) -> tuple[list[Path], tuple[str, ...]]:
        (paths, drawing), name = write_fold(folded, folder, visit), folded.structure.name
        pair_map = image((folder / "map.png").read_bytes(), f"Pair probabilities of {name}", "png")
        arcs = image((folder / "arcs.svg").read_bytes(), f"Arcs of {name}")
        return paths, (folded.summary(), drawing, pair_map, arcs)

    def fold(rna: str, decoder: str, weight: float | None, request: gr.Request) -> Any:
        with _visit(service, request) as visit:
            folded = service.fold(visit, rna, decoder, weight)
            paths, drawn = figures(folded, service.new_folder(), visit)
            yield gr.Textbox(folded.text("dbn"), visible=True), *drawn, _given(paths)

    box.value = f">tRNA-Phe\n{_TRNA}"  # the first screen has an answer
    with service.turns.visit(None) as visit:
        example = service.fold(visit, box.value)
        first = figures(example, service.new_folder(), visit)[1]
    text = gr.Textbox(
        example.text("dbn"), label="Dot-bracket", lines=3, elem_id="dot-bracket", buttons=["copy"], render=False
    )
    summary = gr.Markdown(first[0], elem_id="summary", render=False)
    names = ("drawing", "pair-map", "arcs")
    drawing, pair_map, arcs = (gr.HTML(html, elem_id=n, render=False) for n, html in zip(names, first[1:], strict=True))
    files = _files("fold-files")
    outputs = [text, summary, drawing, pair_map, arcs, files]
    _connect(service, fold, run, examples, [box, decoder, weight], outputs)
    summary.render()
    text.render()
    with gr.Row():
        for part in (drawing, pair_map):
            with gr.Column(min_width=340):
                part.render()
    arcs.render()
    files.render()


def write_fold(folded: FoldedRna, folder: Path, visit: Visit) -> tuple[list[Path], str]:
    """Write the files of a structure; the HTML of its drawing, or why there is none."""
    structure, probabilities = folded.structure, folded.probabilities
    paths = [folder / f"structure.{ending}" for ending in ("dbn", "ct", "csv")]
    for path in paths:
        write_structures(path, [structure])
    draw: dict[str, Callable[[Path], Any]] = {}
    try:
        text = structure_svg(structure, probabilities)
    except InputError as error:  # no layout; arcs and map show the structure
        html = f"<p>Not drawn: {escape(str(error))}.</p>"
    else:
        html = _picture(text)
        draw["drawing"] = lambda path: svg.save(text, path, "drawing a structure")
    draw["map"] = lambda path: draw_pair_map(structure, probabilities, path)
    draw["arcs"] = lambda path: draw_arcs(structure, path)
    for name, function in draw.items():  # matplotlib draws one figure at a time
        for path in (folder / f"{name}.svg", folder / f"{name}.png"):
            visit.turn(partial(function, path))
            paths.append(path)
    return paths, html


def _embed_tab(service: Service) -> None:
    gr.Markdown(
        f"Compute one vector per sequence. Enter FASTA, or one sequence per line: up to {SEQUENCES:,} sequences of "
        f"up to {EMBED:,} nt, {EMBED_TOGETHER:,} nt in total. Files may be compressed."
    )
    box, upload, example = _many_box("FASTA")
    run = gr.Button("Embed", variant="primary")
    colour = gr.Dropdown([NO_FIELD], label="Color of the map", visible=False, elem_id="colour", render=False)
    map_html = gr.HTML(elem_id="map", render=False)
    table = gr.Dataframe(
        label="Sequences", interactive=False, elem_id="table", max_height=300, visible=False, render=False
    )
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
                written += [folder / "map.svg", folder / "map.png"]
            fields = gr.Dropdown(choices, value=choices[0], visible=bool(map_image))
            yield fields, map_image, gr.Dataframe(rows, visible=True), _given(written), folder

    def colour_again(folder: Path | None, field: str, request: gr.Request) -> str:
        with _visit(service, request) as visit:
            return _draw_map(visit, folder, field)[1]

    outputs = [colour, map_html, table, files, folder]
    _connect(service, embed, run, [example], [box, upload], outputs)
    colour.input(colour_again, [folder, colour], map_html, **_BUTTON)
    for component in outputs[:-1]:
        component.render()


def _predict_tab(service: Service, model: str) -> None:
    gr.Markdown(
        f"Predict with {_code(model)}, a model for {service.predicts}. Enter FASTA, or one sequence per line: up to "
        f"{SEQUENCES:,} sequences of up to {EMBED:,} nt, {EMBED_TOGETHER:,} nt in total. Files may be compressed."
    )
    box, upload, example = _many_box("FASTA")
    run = gr.Button("Predict", variant="primary")
    table = gr.Dataframe(interactive=False, elem_id="predictions", max_height=500, visible=False, render=False)
    files = _files("predict-files")

    def predict(text: str, path: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _visit(service, request) as visit:
            rows = service.predict(visit, text, None if path is None else Path(path), _bar(progress))
            written = service.new_folder() / "predictions.csv"
            write_rows(written, rows)
            yield gr.Dataframe(pd.DataFrame(rows), visible=True), _given([written])

    _connect(service, predict, run, [example], [box, upload], [table, files])
    table.render()
    files.render()


def _many_box(label: str) -> tuple[gr.Textbox, gr.File, Callable[..., Any]]:
    """A box for FASTA, a file instead of it, and what registers a function to run after the example."""
    with gr.Row():
        with gr.Column(min_width=320):
            box = _box(label, ">name and what it is\nGGGAAACCC", lines=8, drop=False)
        with gr.Column(min_width=320):
            upload = gr.File(label="or a FASTA file", file_count="single", elem_classes="upload", height=200)
    with gr.Row():
        example = gr.Button("Well-known RNAs", **_SMALL)
    text = (_EXAMPLES / "well_known_rnas.fa").read_text(encoding="utf-8")
    return box, upload, example.click(lambda: (text, None), None, [box, upload], **_INSTANT).then


def _write_embeddings(records: list[Record], vectors: np.ndarray, folder: Path) -> list[Path]:
    """The vectors as CSV, npz and Parquet."""
    paths = [folder / f"embeddings.{ending}" for ending in ("csv", "npz", "parquet")]
    chunk = pack_embeddings(list(zip(records, vectors, strict=True)))
    for path in paths:
        write_embeddings(path, lambda *names: iter([chunk]), folder)
    return paths


def _draw_map(visit: Visit, folder: Path | None, field: str | None) -> tuple[list[str], str]:
    """The fields that may colour the map of an answer, and its image by one, or the first; "" for one point."""
    if folder is None or not (folder / "embeddings.parquet").exists():
        raise InputError("these embeddings have expired; embed the sequences again")
    embeddings, paths = read_embeddings(folder / "embeddings.parquet"), [folder / "map.svg", folder / "map.png"]
    fields = colour_fields(embeddings)
    if len(embeddings.ids) < 2:
        return list(fields), ""
    field = field or next(iter(fields))
    labels = None if field == NO_FIELD else fields[field]
    for path in paths:
        visit.turn(partial(draw_embedding_map, embeddings.values, path, labels, label_name=field))
    return list(fields), image(paths[0].read_bytes(), f"Map of {len(embeddings.ids)} sequences")


def _variants_tab(service: Service) -> None:
    gr.Markdown(
        "Score all single-nucleotide substitutions: 0 means as likely as the wild type, red less likely, blue more "
        f"likely. Up to {VARIANTS} nt when masking one position at a time, {ONE_PASS:,} nt in one pass."
    )
    box = _box("RNA", _TRNA)
    examples = _examples(box, "well_known_rnas.fa", "tRNA-Phe", "HIV-1_TAR")
    choices = [("each position masked", METHODS[0]), ("one pass", METHODS[1])]
    method = gr.Radio(choices, value=METHODS[0], label="Method")
    run = gr.Button("Score", variant="primary")
    heat_map_html = gr.HTML(elem_id="heat", render=False)
    files = _files("variant-files")

    def score(text: str, method: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _visit(service, request) as visit:
            record, scores = service.variants(visit, text, method, _bar(progress))
            folder = service.new_folder()
            table, *drawn = (folder / f"variants.{ending}" for ending in ("csv", "svg", "png"))
            title = f"{record.id[:60]}, {method}"
            for path in drawn:
                visit.turn(partial(draw_heat_map, scores, record.sequence, title, path))
            write_rows(table, _variant_rows(record.sequence, scores), columns=_VARIANT_COLUMNS)
            html = image(drawn[0].read_bytes(), f"Scores of single-nucleotide substitutions of {record.id}")
            yield html, _given([table, *drawn])

    _connect(service, score, run, examples, [box, method], [heat_map_html, files])
    heat_map_html.render()
    files.render()


_VARIANT_COLUMNS = ("mutant", "position", "wild_type", "letter", "score")


def _variant_rows(sequence: str, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """The columns of `rinalmo score --all-single`, but for the record."""
    for place, old in enumerate(sequence):
        for column, new in enumerate("ACGU"):
            if new != old and np.isfinite(scores[place, column]):
                values = (f"{old}{place + 1}{new}", place + 1, old, new, float(scores[place, column]))
                yield dict(zip(_VARIANT_COLUMNS, values, strict=True))


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

        `confidence` is the expected share of right pairs, `energy` the free energy in kcal/mol.
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
                "confidence": structure.confidence,
                "energy": structure.energy,
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

    def predict(request: gr.Request, fasta: str) -> list[Answer]:
        """The predictions of a fine-tuned model for the sequences of FASTA text, as rows of a table."""
        with _visit(service, request, is_api=True) as visit:
            return service.predict(visit, _text(fasta))

    functions: list[Callable[..., Any]] = [fold, embed]
    functions += [fill_mask, variants] if service.fills_masks else []
    functions += [predict] if service.predicts is not None else []
    for function in functions:
        gr.api(function, api_name=function.__name__, **_COMPUTING)


def _text(value: Any) -> str:
    """The API accepts any JSON."""
    if not isinstance(value, str):
        raise gr.Error(f"expected a text, not a {type(value).__name__}", print_exception=False)
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
        raise gr.Error("something went wrong; see the server's log", print_exception=False) from None


def _bar(progress: gr.Progress) -> Progress:
    return lambda done, total: progress((done, total))


def _box(label: str, example: str, lines: int = 4, *, drop: bool = True) -> gr.Textbox:
    """A box for RNA, with a place where a file is dropped whose text it takes."""
    box = gr.Textbox(label=label, placeholder=example, lines=lines, max_lines=12, elem_classes="rna")
    if drop:
        file = gr.File(label="or drop a file here", file_count="single", elem_classes="drop", height=130)

        def read(path: str) -> tuple[str, None]:
            try:
                return text_of_file(Path(path)), None
            except RinalmoError as error:
                raise gr.Error(escape(str(error)), duration=_ERROR_SECONDS, print_exception=False) from None

        file.upload(read, file, [box, file], **_INSTANT)
    return box


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
    return gr.File(label="Files", file_count="multiple", interactive=False, elem_id=name, visible=False, render=False)


def _given(paths: Sequence[Path]) -> gr.File:
    return gr.File([*map(str, paths)], visible=True)


def _code(name: str) -> str:
    return f"<code>{escape(name)}</code>"
