"""Progress, --quiet, and what commands say to a slip of the keyboard."""

import gzip
import random

import pytest

import rinalmo
from rinalmo.cli import options
from rinalmo.engine.jobs import shard_size
from rinalmo.io.files import duration
from rinalmo.io.sequences import count_records, is_sequence, read_sequences
from rinalmo.training.trainer import Event


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(options.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.mark.parametrize(
    ("total", "lines"),
    [
        ((400, True), ["folding: 10 of 400 sequences (2 %)", "folding: 100 of 400 sequences (25 %), 2 min left"]),
        (
            (400, False),
            ["folding: 10 of about 400 sequences (2 %)", "folding: 100 of about 400 sequences (25 %), 2 min left"],
        ),
        (None, ["folding: 10 sequences", "folding: 100 sequences"]),
    ],
)
def test_a_line_every_half_minute(clock, capsys, total, lines):
    with options.progress("folding", total=lambda: total) as report:
        for seconds, count in ((29, 5), (1, 10), (29, 50), (1, 100), (1, 110)):
            clock(seconds)
            report(count)
    err = capsys.readouterr().err
    assert "\r" not in err
    assert err.splitlines() == lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (3600, "1 h 0 min"),
        (9000, "2 h 30 min"),
        (1e5, "1 d 3 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_end_of_a_training_run_is_foreseen(clock, capsys):
    values = {"loss": 1.0, "lr": 1e-3, "tokens_per_second": 5.0}
    with options.training_progress() as (event, note):
        event(Event(10, 1000, values))
        clock(10)
        event(Event(20, 1000, values))  # too early for a line
        clock(40)
        event(Event(60, 1000, values))
        note("a note")
    assert capsys.readouterr().err.splitlines() == [
        "10 of 1,000 steps (1 %)  loss 1.0000  lr 1.0e-03  5 tokens/s",
        "60 of 1,000 steps (6 %), 16 min left  loss 1.0000  lr 1.0e-03  5 tokens/s",
        "note: a note",
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_records_are_counted_as_they_are_read(tmp_path, line_end, end):
    chooser = random.Random(1)
    records = [f">{n}\n{''.join(chooser.choices('ACGU', k=50))}" for n in range(50)]
    fasta, table = tmp_path / "in.fa", tmp_path / "in.csv"
    fasta.write_bytes(("\n".join(records) + end).replace("\n", line_end).encode())
    rows = [f"{n},{record.splitlines()[1]}" for n, record in enumerate(records)]
    table.write_bytes(("\n".join(["id,sequence", *rows]) + end[:1]).replace("\n", line_end).encode())
    packed = tmp_path / "in.fa.gz"
    packed.write_bytes(gzip.compress(fasta.read_bytes()))
    for path in (fasta, table, packed):
        assert count_records(path) == (50, True)
        assert len(list(read_sequences(path))) == 50


def test_the_number_of_records_of_a_large_file_is_estimated(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text("".join(f">{n:06}\n{'ACGU' * 50}\n" for n in range(10_000)))
    number, exact = count_records(path, seconds=0)
    assert not exact
    assert 9_500 < number < 10_500
    assert count_records("-") is None
    assert count_records(tmp_path / "none.fa") is None
    assert [shard_size(10, f"{n}/3") for n in (1, 2, 3)] == [4, 3, 3]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        *[(text, True) for text in ("ACGU", "gattaca", "ACGNRYUU", "AC<mask>U", "ACGU" * 300)],
        *[(text, False) for text in ("-", "", "acgnryuu", "missing", "MISSING", "in.fa")],
    ],
)
def test_a_sequence_in_place_of_a_file(text, is_one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_sequence(text) is is_one
    if is_one and len(text) < 200 and "<" not in text:
        (tmp_path / text).touch()
        assert not is_sequence(text)


def test_every_command_that_reads_fasta_takes_a_sequence(rinalmo_command, tmp_path):
    folded = rinalmo_command("fold", "GGGGGAAAACCCCC")
    assert folded.out.split()[1:3] == ["GGGGGAAAACCCCC", "(((((....)))))"]
    predicted = rinalmo_command("predict", "nano-fold", "gggggaaaaccccc")
    assert "\n1,GGGGGAAAACCCCC,(((((....)))))" in predicted.out
    embedded = rinalmo_command("embed", "ACGU", "-o", tmp_path / "out.npz")
    assert f"{tmp_path}/out.npz: 1 sequence, 320 dimensions\n" in embedded.err


def test_quiet(rinalmo_command, tmp_path):
    for before, after in ((("-q",), ()), ((), ("--quiet",))):
        done = rinalmo_command(*before, "embed", "ACGU", "-o", tmp_path / "out.npz", *after)
        assert (done.code, done.out, done.err) == (0, "", "")
    assert "1 sequence" in rinalmo_command("embed", "ACGU", "-o", tmp_path / "out.npz").err
    wrong = rinalmo_command("embed", "-q", tmp_path / "none.fa", "-o", tmp_path / "out.npz")
    assert (wrong.code, wrong.err) == (2, f"rinalmo: {tmp_path}/none.fa does not exist; check the path\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["embd"], "there is no command 'embd'; did you mean embed?"),
        (["align"], "there is no command 'align'; there are benchmark, card, convert"),
        (["embed", "in.fa", "--ouput", "x.npz"], "Did you mean"),
        (["data", "prepar"], "No such command 'prepar'"),
        (["fold", "ACGU", "--shard", "2/2"], "--shard 2/2 is empty; the input has fewer than 2 sequences"),
    ],
)
def test_slips(rinalmo_command, arguments, hint):
    done = rinalmo_command(*arguments)
    assert (done.code, hint in done.err) == (2, True), done.err


def test_no_control_character_of_a_file_reaches_the_terminal(rinalmo_command, backbone, tmp_path):
    (tmp_path / "in.fa").write_bytes(b">a\x1b[31m\x9b \x07red\nGGGGAAAACCCC\n>b\x1b]0;title\x07\nGGGG-AAAACCCC\n")
    (tmp_path / "one.fa").write_bytes((tmp_path / "in.fa").read_bytes().replace(b"-", b""))
    (tmp_path / "masked.fa").write_bytes((tmp_path / "one.fa").read_bytes().replace(b"AAAA", b"<mask>"))
    for arguments in (
        ("fold", tmp_path / "in.fa"),
        ("fold", tmp_path / "one.fa"),
        ("predict", "nano-fold", tmp_path / "one.fa"),
        ("score", tmp_path / "one.fa", "--all-single", "--model", backbone, "--method", "wild-type-marginals"),
        ("fill-mask", tmp_path / "masked.fa", "--model", backbone),
        ("fill-mask", tmp_path / "masked.fa", "--model", backbone, "--format", "tsv"),
    ):
        done = rinalmo_command(*arguments)
        assert not {*done.out, *done.err} & {"\x1b", "\x07", "\x9b"}, arguments
        assert r"\x1b" in done.out + done.err


@pytest.mark.parametrize("function", [rinalmo.embed, rinalmo.fold])
def test_a_file_that_does_not_exist_is_named_as_such(function, tmp_path):
    with pytest.raises(rinalmo.InputError, match=r"'missing\.fa': no such file"):
        function("missing.fa")
    with pytest.raises(rinalmo.InputError, match=r"missing\.fa does not exist; check the path"):
        function(tmp_path / "missing.fa")


def test_a_figure_in_a_folder(rinalmo_command, backbone, tmp_path):
    score = ("score", "GGGAAACCC", "--all-single", "--model", backbone, "--method", "wild-type-marginals")
    done = rinalmo_command(*score, "-o", tmp_path / "out.csv", "--plot", f"{tmp_path}/new/figures/")
    assert done.code == 0, done.err
    assert "<svg" in (tmp_path / "new" / "figures" / "heat_map.svg").read_text()
    refused = rinalmo_command(*score, "--plot", f"{tmp_path}/out.csv/")
    assert (refused.code, "cannot create this folder" in refused.err) == (2, True)
