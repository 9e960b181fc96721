"""What the page shows as pictures, each an `<img>` whose source is its data: nothing in a picture can run or fetch."""

from __future__ import annotations

import base64
import csv
import re
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
from rinalmo.io.fasta import read_fasta
from rinalmo.io.files import replacing
from rinalmo.plots import draw_arcs, draw_logo, draw_pair_map, heat_map, svg
from rinalmo.plots.drawing import structure_svg
from rinalmo.plots.embedding_map import draw_embedding_map
from rinalmo.plots.logo import LETTER_COLOURS
from rinalmo.plots.style import BLACK, FONTS, GREY, PALE, WHITE
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
    Embedded,
    Folded,
    Service,
    Visit,
    letters_of,
)
from rinalmo.weights.catalog import ASSETS

_TYPES = {"svg": "svg+xml", "png": "png"}

# Of the bars, in pixels.
_ROW, _HEADING, _START, _WIDEST, _WIDTH = 22, 34, 70, 300, 460


def image(picture: str | bytes, alternative: str, format: str = "svg") -> str:
    """HTML of a picture; `alternative` is said where it cannot be seen."""
    content = picture.encode() if isinstance(picture, str) else picture
    source = f"data:image/{_TYPES[format]};base64,{base64.b64encode(content).decode()}"
    return f'<div class="picture"><img alt="{escape(alternative)}" src="{source}"></div>'


def bars(masks: Sequence[Sequence[Prediction]]) -> str:
    """SVG of the candidates at each mask: a bar each, as long as it is probable."""
    parts = [svg.element("rect", width="100%", height="100%", fill=WHITE)]
    y = 0
    for candidates in masks:
        parts += _mask(candidates, y)
        y += _HEADING + _ROW * len(candidates)
    size = {"width": _WIDTH, "height": y + 8, "viewBox": f"0 0 {_WIDTH} {y + 8}"}
    return svg.element("svg", "\n".join(parts), xmlns="http://www.w3.org/2000/svg", font_family=FONTS, **size)


def _mask(candidates: Sequence[Prediction], top: int) -> Iterator[str]:
    left = {"text_anchor": "start", "fill": BLACK}
    yield svg.text(f"position {candidates[0].position}", np.array([12.0, top + 20.0]), font_size=14, **left)
    for row, candidate in enumerate(candidates):
        y = top + _HEADING + _ROW * row
        name = {"text_anchor": "end", "font_size": 13, "fill": BLACK}
        yield svg.text(candidate.token_str, np.array([_START - 8.0, y + 9.0]), **name)
        bar = {"x": _START, "y": y, "height": _ROW - 5}
        yield svg.element("rect", width=_WIDEST, fill=PALE, fill_opacity=0.5, **bar)
        colour = LETTER_COLOURS.get(candidate.token_str, GREY)
        yield svg.element("rect", width=f"{_WIDEST * candidate.score:.1f}", fill=colour, **bar)
        score = f"{candidate.score:.4f}" if candidate.score >= 0.0001 else "< 0.0001"
        yield svg.text(score, np.array([_START + _WIDEST + 10.0, y + 9.0]), font_size=13, **left)


NOTHING = "nothing"


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the nearest other one by cosine, after centring, and the cosine; an only one has itself and 1."""
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    if len(vectors) > 1:
        np.fill_diagonal(cosine, -np.inf)
    best = cosine.argmax(axis=1)
    return best, (cosine[np.arange(len(best)), best] if len(vectors) > 1 else np.ones(1))


def fields(found: Embeddings) -> dict[str, list[str]]:
    """What may colour a map, by name: fields of the headers, the name up to its first - _ | : or /, and so on.

    A field that tells no two sequences apart, or all of them, is left out, but for the length. The last is "nothing".
    """
    descriptions = found.descriptions or [""] * len(found.ids)
    every = {
        **common_fields(found.ids, descriptions),
        "start of the name": [re.split(r"[-_|:/]", id.lstrip("-_|:/"))[0] for id in found.ids],
        "description": descriptions,
    }
    useful = {name: values for name, values in every.items() if 1 < len(set(values)) < len(values)}
    return {**useful, "length": [str(length) for length in found.lengths], NOTHING: [""] * len(found.ids)}


def draw_map(found: Embeddings, field: str, path: Path) -> None:
    """Draw the first two principal components, coloured by a field."""
    labels = None if field == NOTHING else fields(found)[field]
    draw_embedding_map(found.values, path, labels, label_name=field)


def write_files(embedded: Embedded, folder: Path) -> list[Path]:
    """The vectors as CSV, npz and Parquet, in an empty folder."""
    records, vectors = embedded.records, embedded.vectors
    chunk = pack_embeddings(list(zip(records, vectors, strict=True)))
    for ending in ("npz", "parquet"):
        write_embeddings(folder / f"embeddings.{ending}", lambda *names: iter([chunk]), folder)
    with (folder / "embeddings.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "description", "length", *(f"dim_{n}" for n in range(vectors.shape[1]))])
        for record, vector in zip(records, vectors, strict=True):
            rows.writerow([record.id, record.description, len(record.sequence), *(f"{value:.7g}" for value in vector)])
    return [folder / f"embeddings.{ending}" for ending in ("csv", "npz", "parquet")]


AT_ONCE = 4
"""Requests that are answered at once, batch by batch in turn."""

SESSIONS = 200
"""Visitors that are remembered (0.1 MB each), of those who did not say that they left."""

WAITING = 60
"""Requests that may wait; more are told to come again."""

STYLE = """
.picture { background: white; border-radius: 4px; overflow-x: auto; }
.picture img { max-width: 100%; margin: auto; display: block; }
#heat img { max-width: max(100%, 900px); }
textarea { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace !important; }
footer .divider { display: none; }
"""

Answer = dict[str, Any]

_EXAMPLES = ASSETS / "examples"
_SHOWN_SECONDS = 20
_WEIGHTS = "Leave it empty for the default, which is best. 0: the model alone; 1: ViennaRNA alone"


def theme() -> gr.themes.Base:
    """Fonts that are on the visitor's machine: nothing is fetched from anywhere."""
    fonts = {"font": ["system-ui", "Arial", "sans-serif"], "font_mono": ["DejaVu Sans Mono", "monospace"]}
    return gr.themes.Default(**fonts)  # type: ignore[arg-type]


def page(service: Service, model: str, fold_model: str) -> gr.Blocks:
    """The whole page, with its queue and API. It names the models."""
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
        blocks.unload(_leaving(service, blocks))
    blocks.state_session_capacity = SESSIONS
    return blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


_COMPUTING: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": AT_ONCE}
_BUTTON: dict[str, Any] = {**_COMPUTING, "api_visibility": "private"}
_SMALL: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 140}
_INSTANT: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def _fill_mask_tab(service: Service) -> None:
    gr.Markdown(
        f"What stands at each `<mask>`? One RNA or DNA, up to {FILL_MASK:,} nt with {MASKS} masks; "
        f"the logo, for which each position is masked in turn, up to {LOGO} nt."
    )
    box = _box("RNA with <mask>", "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")
    examples = _examples(box, "model_card_masks.fa", "HIV-1", "microRNA-21")
    heights = gr.Radio(["probability", "information"], value="probability", label="Heights in the logo")
    run = gr.Button("Predict", variant="primary")
    shown = gr.HTML(label="Candidates", elem_id="bars")
    logo = gr.HTML(label="Logo", elem_id="logo")

    def candidates(text: str, request: gr.Request) -> tuple[str, str]:
        with _answering(service, request) as visit:
            record, masks = service.fill_mask(visit, text)
            return image(bars(masks), f"Candidates at {len(masks)} masks of {record.id}"), ""

    def whole(text: str, heights: Any, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        with _answering(service, request) as visit:
            record, found = service.expected(visit, text, _telling(progress))
            path = service.new_folder() / "logo.svg"
            visit.turn(lambda: draw_logo(found, letters_of(record), path, name=record.id, heights=heights))
            return image(path.read_bytes(), f"Logo of {record.id}")

    for start in (run.click, *examples):
        start(candidates, box, [shown, logo], **_BUTTON).success(whole, [box, heights], logo, **_BUTTON)


def _fold_tab(service: Service, fold_model: str) -> None:
    gr.Markdown(
        f"Which nucleotides pair? One RNA or DNA, up to {FOLD} nt, folded by {_code(fold_model)}; "
        "pseudoknots are drawn dashed."
    )
    box = _box("RNA", "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA")
    examples = _examples(box, "well_known_rnas.fa", "tRNA-Phe", "add_riboswitch")
    choices = [("nested: no pseudoknots", "nested"), ("greedy, as the paper", "greedy")]
    with gr.Row():
        decoder = gr.Radio(choices, value=service.decoder, label="Choice of pairs")
        weight = gr.Number(None, minimum=0, maximum=1, label="Weight of thermodynamics (ViennaRNA)", info=_WEIGHTS)
    run = gr.Button("Fold", variant="primary")
    text = gr.Textbox(label="Dot-bracket", lines=3, elem_id="dot-bracket", buttons=["copy"], visible=False)
    with gr.Row():
        drawing = gr.HTML(elem_id="drawing")
        pair_map = gr.HTML(elem_id="pair-map")
    arcs = gr.HTML(elem_id="arcs")
    files = _files("fold-files")

    def fold(rna: str, decoder: str, weight: float | None, request: gr.Request) -> Any:
        with _answering(service, request) as visit:
            folded = service.fold(visit, rna, decoder, weight)
            folder = service.new_folder()
            found = _fold_files(folded, folder, visit)
            name = folded.structure.name
            pictures = [
                image((folder / "drawing.svg").read_bytes(), f"Drawing of {name}"),
                image((folder / "map.png").read_bytes(), f"Pair probabilities of {name}", "png"),
                image((folder / "arcs.svg").read_bytes(), f"Arcs of {name}"),
            ]
            shown = gr.Textbox(folded.text("dbn"), visible=True)
            return shown, *pictures, gr.File([str(path) for path in found], visible=True)

    for start in (run.click, *examples):
        start(fold, [box, decoder, weight], [text, drawing, pair_map, arcs, files], **_BUTTON)


def _fold_files(folded: Folded, folder: Path, visit: Visit) -> list[Path]:
    structure, paths = folded.structure, [folder / name for name in ("structure.dbn", "structure.ct")]
    for path in paths:
        with replacing(path) as file:
            file.write(folded.text(path.suffix[1:]).encode())
    drawing, arcs, pair_map = (folder / name for name in ("drawing.svg", "arcs.svg", "map.png"))
    drawing.write_text(structure_svg(structure, folded.probabilities), encoding="utf-8")
    visit.turn(lambda: draw_arcs(structure, arcs))  # matplotlib draws one picture at a time
    visit.turn(lambda: draw_pair_map(structure, folded.probabilities, pair_map))
    return [*paths, drawing, arcs, pair_map]


def _embed_tab(service: Service) -> None:
    gr.Markdown(
        f"A vector for each sequence. FASTA, or one sequence a line: up to {SEQUENCES:,} sequences of up to "
        f"{EMBED:,} nt, {EMBED_TOGETHER:,} nt together. A file may be compressed with gzip or zstd."
    )
    with gr.Row():
        box = _box("FASTA", ">name and what it is\nGGGAAACCC", lines=8)
        upload = gr.File(label="or a FASTA file", file_count="single", elem_id="upload", height=200)
    with gr.Row():
        example = gr.Button("Well-known RNAs", **_SMALL)
    run = gr.Button("Embed", variant="primary")
    colour = gr.Dropdown([NOTHING], label="Colour of the map", visible=False, elem_id="colour")
    shown = gr.HTML(elem_id="map")
    table = gr.Dataframe(label="Sequences", interactive=False, elem_id="table", max_height=300, visible=False)
    files = _files("embed-files")
    folder = gr.State(None)  # of the last answer's files, from which the map is drawn again

    def embed(text: str, path: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _answering(service, request) as visit:
            embedded = service.embed(visit, text, None if path is None else Path(path), _telling(progress))
            records = embedded.records
            place, cosine = nearest(embedded.vectors)
            rows = pd.DataFrame(
                {
                    "name": [record.id for record in records],
                    "nt": [len(record.sequence) for record in records],
                    "nearest": [records[n].id for n in place],
                    "cosine": np.round(cosine.astype(float), 3),
                    "description": [record.description for record in records],
                }
            )
            folder = service.new_folder()
            written = write_files(embedded, folder)
            choices, picture = _map(visit, folder, None)
            if picture:
                written.append(folder / "map.svg")
            return (
                gr.Dropdown(choices, value=choices[0], visible=bool(picture)),
                picture,
                gr.Dataframe(rows, visible=True),
                gr.File([str(path) for path in written], visible=True),
                folder,
            )

    def colour_again(folder: Path | None, field: str, request: gr.Request) -> str:
        with _answering(service, request) as visit:
            return _map(visit, folder, field)[1]

    text = (_EXAMPLES / "well_known_rnas.fa").read_text(encoding="utf-8")
    filled = example.click(lambda: (text, None), None, [box, upload], **_INSTANT)
    for start in (run.click, filled.then):
        start(embed, [box, upload], [colour, shown, table, files, folder], **_BUTTON)
    colour.input(colour_again, [folder, colour], shown, **_BUTTON)


def _map(visit: Visit, folder: Path | None, field: str | None) -> tuple[list[str], str]:
    """The fields that may colour the map of an answer, and its picture by one, or the first; "" for one point."""
    if folder is None or not (folder / "embeddings.parquet").exists():
        raise InputError("these embeddings are no longer here; embed them again")
    found, path = read_embeddings(folder / "embeddings.parquet"), folder / "map.svg"
    choices = list(fields(found))
    if len(found.ids) < 2:
        return choices, ""
    visit.turn(lambda: draw_map(found, choices[0] if field is None else field, path))
    return choices, image(path.read_bytes(), f"Map of {len(found.ids)} sequences")


def _variants_tab(service: Service) -> None:
    gr.Markdown(
        "How likely is each exchange of one letter, next to the RNA as it is? 0 is as likely, red less, blue more. "
        f"Up to {VARIANTS} nt with each position masked in turn, {ONE_PASS:,} nt in one pass."
    )
    box = _box("RNA", "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA")
    examples = _examples(box, "well_known_rnas.fa", "tRNA-Phe", "HIV-1_TAR")
    choices = [("each position masked", METHODS[0]), ("one pass", METHODS[1])]
    method = gr.Radio(choices, value=METHODS[0], label="Method")
    run = gr.Button("Score", variant="primary")
    shown = gr.HTML(elem_id="heat")
    files = _files("variant-files")

    def score(text: str, method: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        with _answering(service, request) as visit:
            record, scores = service.variants(visit, text, method, _telling(progress))
            folder = service.new_folder()
            title = f"{record.id[:60]}, {method}"
            visit.turn(lambda: heat_map.draw(scores, record.sequence, title, folder / "variants.svg"))
            (folder / "variants.csv").write_text(_scores_csv(record.sequence, scores), encoding="utf-8", newline="")
            picture = image((folder / "variants.svg").read_bytes(), f"Scores of single mutations of {record.id}")
            written = [str(folder / f"variants.{ending}") for ending in ("csv", "svg")]
            return picture, gr.File(written, visible=True)

    for start in (run.click, *examples):
        start(score, [box, method], [shown, files], **_BUTTON)


def _scores_csv(sequence: str, scores: np.ndarray) -> str:
    """The same columns as `rinalmo score --all-single` has, but for the record."""
    lines = ["mutant,position,wild_type,letter,score"]
    for place, old in enumerate(sequence):
        for column, new in enumerate("ACGU"):
            if new != old and np.isfinite(scores[place, column]):
                lines.append(f"{old}{place + 1}{new},{place + 1},{old},{new},{scores[place, column]:.6f}")
    return "\n".join(lines) + "\n"


def _api(service: Service) -> None:
    """Endpoints with plain data in and out, named as the commands."""

    def fill_mask(request: gr.Request, sequence: str, top_k: int = 5, each_position: bool = False) -> Answer:
        """Candidates at each <mask> (position, letter, probability, sequence), best first.

        With each_position also the probabilities of A, C, G and U at each position, masked in turn.
        """
        with _answering(service, request, for_page=False) as visit:
            record, masks = service.fill_mask(visit, _text(sequence), _number("top_k", top_k, whole=True))
            answer: Answer = {"sequence": record.sequence, "masks": [[vars(c) for c in mask] for mask in masks]}
            if each_position:
                answer["probabilities"] = service.expected(visit, sequence, _silent)[1].tolist()
            return answer

    def fold(
        request: gr.Request, sequence: str, decoder: str | None = None, thermodynamics: float | None = None
    ) -> Answer:
        """The structure as dot-bracket text, as pairs [i, j, probability] (from 1), as DBN and as CT.

        `thermodynamics`, from 0 to 1, is the weight of ViennaRNA's probabilities beside the model's; null: the default.
        """
        with _answering(service, request, for_page=False) as visit:
            weight = None if thermodynamics is None else _number("thermodynamics", thermodynamics)
            folded = service.fold(visit, _text(sequence), decoder, weight)
            structure, found = folded.structure, folded.probabilities
            return {
                "name": structure.name,
                "sequence": structure.sequence,
                "dot_bracket": structure.dot_bracket,
                "pairs": [[i + 1, j + 1, float(found[i, j])] for i, j in structure.pairs],
                "dbn": folded.text("dbn"),
                "ct": folded.text("ct"),
            }

    def embed(request: gr.Request, fasta: str) -> Answer:
        """Ids, descriptions and lengths of the sequences of FASTA text, and their embeddings: a list for each."""
        with _answering(service, request, for_page=False) as visit:
            found = service.embed(visit, _text(fasta), None, _silent)
            return {
                "ids": [record.id for record in found.records],
                "descriptions": [record.description for record in found.records],
                "lengths": [len(record.sequence) for record in found.records],
                "embeddings": found.vectors.tolist(),
            }

    def variants(request: gr.Request, sequence: str, method: str = METHODS[0]) -> Answer:
        """Scores of every exchange of one letter: at each position of A, C, G and U, null where there is none."""
        with _answering(service, request, for_page=False) as visit:
            record, scores = service.variants(visit, _text(sequence), method, _silent)
            rows = [[None if np.isnan(score) else score for score in row] for row in scores.tolist()]
            return {"sequence": record.sequence, "letters": "ACGU", "scores": rows}

    for function in (fill_mask, fold, embed, variants):
        gr.api(function, api_name=function.__name__, **_COMPUTING)


def _text(given: Any) -> str:
    """The API takes any JSON."""
    if not isinstance(given, str):
        raise gr.Error(f"a {type(given).__name__} came where a text is expected", print_exception=False)
    return given


def _number(name: str, given: Any, *, whole: bool = False) -> Any:
    if isinstance(given, bool) or not isinstance(given, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise gr.Error(f"{name} is a {type(given).__name__}; give {kind}", print_exception=False)
    return given


@contextmanager
def _answering(service: Service, request: gr.Request, *, for_page: bool = True) -> Iterator[Visit]:
    """A visit whose errors are one line for the visitor. The page shows it as HTML, so there it is escaped."""
    try:
        with service.turns.visit(request.session_hash) as visit:
            yield visit
    except RinalmoError as error:
        message = " ".join(str(error).split())
        shown = escape(message) if for_page else message
        raise gr.Error(shown, duration=_SHOWN_SECONDS, print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        traceback.print_exc()
        raise gr.Error("something went wrong here, and the server's log says what", print_exception=False) from None


def _leaving(service: Service, blocks: gr.Blocks) -> Callable[[gr.Request], Awaitable[None]]:
    async def leave(request: gr.Request) -> None:  # on the event loop, as whatever else changes the sessions
        session = request.session_hash or ""
        service.turns.leave(session)
        # Gradio itself would keep them, without what is in them, until there are too many.
        blocks.state_holder.session_data.pop(session, None)
        blocks.state_holder.time_last_used.pop(session, None)

    return leave


def _telling(progress: gr.Progress) -> Callable[[int, int], None]:
    return lambda done, of: progress((done, of))


def _silent(done: int, of: int) -> None:
    """Nothing: the API has no progress bar."""


def _box(label: str, example: str, lines: int = 4) -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=example, lines=lines, max_lines=12, elem_classes="rna")


def _examples(box: gr.Textbox, file: str, *names: str) -> list[Callable[..., Any]]:
    """A button for each example, which writes it into the box; what to call for an event when that is done."""
    records = {record.id: record for record in read_fasta(_EXAMPLES / file, allow_mask=True)}
    written: list[Callable[..., Any]] = []
    with gr.Row():
        for name in names:
            text = f">{name}\n{records[name].sequence}"
            button = gr.Button(name, **_SMALL)
            written.append(button.click(lambda text=text: text, None, box, **_INSTANT).then)
    return written


def _files(name: str) -> gr.File:
    return gr.File(label="Files", file_count="multiple", interactive=False, elem_id=name, visible=False)


def _code(name: str) -> str:
    return f"<code>{escape(name)}</code>"
