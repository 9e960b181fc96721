"""What every model of transformers does, our classes do: arguments, embeddings, hooks, adapters, labels."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DataCollatorForTokenClassification,
    pipeline,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.trainer_pt_utils import LabelSmoother

import rinalmo
from rinalmo.errors import CheckpointError, InputError
from rinalmo.model import heads

HEADS = ["MaskedLM", "SequencePrediction", "TokenPrediction", "ContactPrediction", "SecondaryStructurePrediction"]
CLASSES = ["RiNALMoModel", *(f"RiNALMoFor{kind}" for kind in HEADS)]


@pytest.fixture(scope="module")
def name():
    return str(rinalmo.resolve("nano"))


@pytest.fixture(scope="module")
def tokenizer(name):
    return rinalmo.RnaTokenizer.from_pretrained(name)


@pytest.fixture(scope="module")
def batch(tokenizer):
    return tokenizer(["ACGU<mask>CGU", "GGGA"], padding=True, return_tensors="pt")


def load(name, cls, **options):
    torch.manual_seed(0)
    return getattr(rinalmo, cls).from_pretrained(name, **options).eval()


def test_either_ids_or_embeddings(name):
    model = load(name, "RiNALMoModel")
    with pytest.raises(InputError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(InputError, match=r"inputs_embeds has shape \(2, 10, 7\)"):
        model(inputs_embeds=torch.zeros(2, 10, 7))


def test_integrated_gradients_are_complete(name, tokenizer):
    model = load(name, "RiNALMoForSequencePrediction", num_labels=2)
    ids = tokenizer(["ACGUACGU"], return_tensors="pt")["input_ids"]
    other = ids.clone()
    other[:, 1:-1] = tokenizer.convert_tokens_to_ids("N")
    ends = [model.get_input_embeddings()(x).detach() for x in (other, ids)]
    total, steps = 0.0, 64
    for step in range(steps):
        point = torch.lerp(*ends, (step + 0.5) / steps).requires_grad_()
        model(inputs_embeds=point).logits[0, 1].backward()
        total += (point.grad * (ends[1] - ends[0])).sum() / steps
    torch.testing.assert_close(total, (model(ids).logits - model(other).logits)[0, 1].detach(), atol=1e-3, rtol=0)


def test_positions_are_relative_and_arguments_of_other_models_have_defaults(name, batch):
    model = load(name, "RiNALMoModel")
    mask = batch["attention_mask"]
    plain = model(**batch).last_hidden_state
    same = model(
        **batch,
        position_ids=torch.arange(10)[None] + 5,
        token_type_ids=torch.zeros_like(mask),
        head_mask=torch.ones(6, 20),
    ).last_hidden_state
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=0)
    assert not torch.allclose(model(**batch, position_ids=torch.arange(10) * 2).last_hidden_state, plain, atol=1e-2)
    for wrong in ({"token_type_ids": mask}, {"head_mask": torch.zeros(6, 20)}, {"position_ids": torch.arange(3)}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            model(**batch, **wrong)


def test_embeddings_are_given_back(name, batch):
    model = load(name, "RiNALMoForMaskedLM")
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    assert isinstance(model.get_output_embeddings(), torch.nn.Linear)
    before = model(**batch).logits
    for kind, new in (("input", torch.nn.Embedding(28, 320)), ("output", torch.nn.Linear(320, 28))):
        getattr(model, f"set_{kind}_embeddings")(new)
        assert getattr(model, f"get_{kind}_embeddings")() is new
        assert not torch.allclose(model(**batch).logits, before)
        before = model(**batch).logits
    assert model.resize_token_embeddings(28) is model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(InputError, match="28 tokens is fixed; it cannot become 30"):
        model.resize_token_embeddings(30)
    with pytest.raises(InputError, match="no output embeddings"):
        load(name, "RiNALMoModel").set_output_embeddings(torch.nn.Linear(3, 3))


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def small(cls, **options):
    torch.manual_seed(0)
    return getattr(rinalmo, cls)(rinalmo.RiNALMoConfig(**SIZES, **options)).eval()


def test_arguments_of_encoders_as_bert_takes_them(batch):
    """What BERT ignores is ignored; what would change its numbers is refused with a reason, not ignored."""
    torch.manual_seed(0)
    for model in (BertModel(BertConfig(vocab_size=28, **SIZES)).eval(), small("RiNALMoModel")):
        plain = model(**batch).last_hidden_state
        for value in (None, False, True):
            more = {"use_cache": value, "cache_position": torch.arange(10), "num_items_in_batch": 2}
            more |= dict.fromkeys(("past_key_values", "encoder_hidden_states", "encoder_attention_mask"))
            assert torch.equal(model(**batch, **more).last_hidden_state, plain)
    refused = {"past_key_values": "prefix tuning", "encoder_hidden_states": "cross-attention", "cu_seq_lens_q": "row"}
    for argument, words in refused.items():
        with pytest.raises(InputError, match=f"^{argument}: RiNALMo .*{words}"):
            model(**batch, **{argument: torch.ones(2, 3, 16)})
    with pytest.raises(InputError, match="is_causal: RiNALMo attends in both directions"):
        model(**batch, is_causal=True)
    with pytest.raises(TypeError, match="no argument 'atention_mask'"):
        model(batch["input_ids"], atention_mask=batch["attention_mask"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_of_pairs_that_stand_for_padding(batch, attention, side):
    """Those that transformers' own function makes, in BERT and here; any other mask is refused."""
    torch.manual_seed(0)
    given = dict(batch) if side == "right" else {key: value.flip(1) for key, value in batch.items()}
    mask = given.pop("attention_mask")
    ours = small("RiNALMoModel", attn_implementation=attention)
    bert = BertModel(BertConfig(vocab_size=28, attn_implementation=attention, **SIZES)).eval()
    pairs = create_bidirectional_mask(bert.config, torch.zeros(2, 10, 16), mask)
    assert pairs.shape == (2, 1, 10, 10)
    keys = (1 - mask[:, None, None].float()) * torch.finfo(torch.float32).min  # as before transformers 5
    for model in (bert, ours):
        expected = model(**given, attention_mask=mask).last_hidden_state[mask.bool()]
        for form in (pairs, keys, *([] if model is bert else (pairs[:, 0], mask[:, None, None]))):
            found = model(**given, attention_mask=form).last_hidden_state[mask.bool()]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    two_in_a_row = torch.block_diag(torch.ones(5, 5), torch.ones(5, 5))[None, None].bool().expand(2, 1, 10, 10)
    for wrong, words in (
        (two_in_a_row, "differs between the tokens of a row.*a row of its own"),
        (torch.full((2, 1, 1, 10), -2.0), "adds numbers to attention scores"),
        (pairs[..., :9], r"shape \(2, 1, 10, 9\); expected \(batch, length\)"),
    ):
        with pytest.raises(InputError, match=words):
            ours(**given, attention_mask=wrong)


@pytest.mark.parametrize("cls", ["RiNALMoForMaskedLM", "RiNALMoForSecondaryStructurePrediction"])
def test_tied_embeddings(tmp_path, cls, caplog):
    model = small(cls, tie_word_embeddings=True)
    assert model.lm_head.decoder.weight is model.encoder.embedding.weight
    assert small(cls).lm_head.decoder.weight is not small(cls).encoder.embedding.weight
    model.save_pretrained(tmp_path)
    again = getattr(rinalmo, cls).from_pretrained(tmp_path)
    assert again.lm_head.decoder.weight is again.encoder.embedding.weight
    assert torch.equal(again.encoder.embedding.weight, model.encoder.embedding.weight)
    engine = rinalmo.load(tmp_path)  # other programs find both
    assert torch.equal(engine.lm_head.decoder.weight, engine.encoder.embedding.weight)
    trained = load("nano", "RiNALMoForMaskedLM", tie_word_embeddings=True)  # two matrices stay two
    assert torch.equal(trained.lm_head.decoder.weight, load("nano", "RiNALMoForMaskedLM").lm_head.decoder.weight)


PEFT_METHODS = {
    "AdaLora": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "FourierFT": {"n_frequency": 10},
    "HRA": {"r": 2},
    "IA3": {},
    "LNTuning": {},
    "LoHa": {"r": 2},
    "LoKr": {"r": 2},
    "Lora": {"r": 2, "use_dora": True},
    "OFT": {"oft_block_size": 4, "r": 0},
    "PromptEncoder": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "PromptTuning": {"num_virtual_tokens": 3},
    "TrainableTokens": {"token_indices": [6, 7], "target_modules": ["embedding"]},
    "Vera": {"r": 2},
}


@pytest.mark.parametrize("method", PEFT_METHODS)
@pytest.mark.parametrize(
    ("cls", "task"),
    [
        ("RiNALMoForMaskedLM", None),
        ("RiNALMoForSequencePrediction", "SEQ_CLS"),
    ],
)
def test_methods_of_peft_with_their_defaults(batch, tmp_path, method, cls, task):
    peft = pytest.importorskip("peft")
    if "Prompt" in method and task is None:
        pytest.skip("PEFT raises for any model")
    config = getattr(peft, f"{method}Config")(task_type=task, **PEFT_METHODS[method])
    tuned = peft.get_peft_model(small(cls, num_labels=3), config)
    tuned.train()(**batch)[0].square().sum().backward()
    with torch.no_grad():
        changed = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        assert any(parameter.grad is not None for parameter in changed)
        for parameter in changed:
            parameter.add_(torch.rand_like(parameter) / 10)
        expected = tuned.eval()(**batch)[0]
        plain = small(cls, num_labels=3)(**batch)[0]
        assert expected.shape != plain.shape or not torch.allclose(expected, plain, atol=1e-6)
        tuned.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(small(cls, num_labels=3), tmp_path).eval()
        torch.testing.assert_close(again(**batch)[0], expected)


def test_prefix_tuning_is_refused_in_one_line(batch):
    peft = pytest.importorskip("peft")
    for cls, task, words in (
        ("RiNALMoForSequencePrediction", "SEQ_CLS", "Model does not support past key values"),
        ("RiNALMoModel", "FEATURE_EXTRACTION", "past_key_values: RiNALMo has no cache"),
    ):
        tuned = peft.get_peft_model(small(cls), peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3))
        with pytest.raises(ValueError, match=words):
            tuned(**batch)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_layer_is_called(name, batch, cls, monkeypatch):
    """Also where the structure head would read its convolutions in blocks of rows."""
    monkeypatch.setattr(heads, "BLOCK", 1)
    model, called = load(name, cls), set()
    layers = {key: layer for key, layer in model.named_modules() if [*layer.parameters(recurse=False)]}
    for key, layer in layers.items():
        layer.register_forward_hook(lambda *_, key=key: called.add(key))
    with torch.no_grad():
        model(**batch)
    beside = {key for key in layers if "Structure" in cls and key.startswith("lm_head")}  # kept for filling masks
    assert layers.keys() - called == beside


@torch.no_grad()
def test_an_adapter_on_convolutions_acts_without_gradients(name, batch, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(heads, "BLOCK", 1)
    model = load(name, "RiNALMoForSecondaryStructurePrediction")
    before = model(**batch).logits
    config = peft.LoraConfig(r=2, target_modules=["conv1", "conv2", "conv3", "projection"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config).eval()
    after = tuned(**batch).logits
    assert not torch.allclose(after, before, atol=1e-3)
    with torch.enable_grad():
        torch.testing.assert_close(tuned(**batch).logits, after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tuned.merge_and_unload()(**batch).logits, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("auto", "task", "own"),
    [
        (AutoModelForSequenceClassification, "SEQ_CLS", "RiNALMoForSequencePrediction"),
        (AutoModelForTokenClassification, "TOKEN_CLS", "RiNALMoForTokenPrediction"),
    ],
)
@pytest.mark.parametrize("targets", ["all-linear", ["qkv"]])
def test_peft_trains_and_saves_the_fresh_head(name, batch, tmp_path, auto, task, own, targets):
    """The base is loaded with another random head each time: what comes back is what was saved."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type=task, r=2, target_modules=targets, init_lora_weights=False)
    tuned = peft.get_peft_model(auto.from_pretrained(name, num_labels=3), config)
    trained = {key for key, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert any("_head.decoder.weight" in key for key in trained)
    assert task == "TOKEN_CLS" or any("pooler.dense.weight" in key for key in trained)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    expected = tuned.eval()(**batch).logits
    tuned.save_pretrained(tmp_path)
    loaders = [
        lambda: peft.PeftModel.from_pretrained(auto.from_pretrained(name, num_labels=3), tmp_path),
        lambda: auto.from_pretrained(tmp_path),
        lambda: getattr(rinalmo, own).from_pretrained(tmp_path),
    ]
    for load_again in loaders:
        torch.testing.assert_close(load_again().eval()(**batch).logits, expected, atol=1e-3, rtol=1e-3)


def bert(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=28, **sizes, **options))


def test_peft_knows_targets_and_wants_the_number_of_labels_as_for_bert(name, tmp_path):
    """PEFT's guides name no `target_modules`; its `AutoPeftModel…` make a base with two labels."""
    peft = pytest.importorskip("peft")
    bert().bert.save_pretrained(tmp_path / "bert")
    for kind, base in (("bert", tmp_path / "bert"), ("rinalmo", name)):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2))
        adapted = {key.split(".lora_")[0].split(".")[-1] for key, _ in tuned.named_parameters() if ".lora_" in key}
        assert adapted == ({"query", "value"} if kind == "bert" else {"qkv"})
        folder = tmp_path / f"{kind}-adapter"
        tuned.save_pretrained(folder)
        with pytest.raises(RuntimeError, match="size mismatch"):
            peft.AutoPeftModelForSequenceClassification.from_pretrained(folder)
        again = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3)
        assert again.config.num_labels == 3


def test_freezing_the_base_model_leaves_the_head(name, batch):
    model = load(name, "RiNALMoForSequencePrediction", num_labels=2)
    for each in (bert(), model):
        for parameter in each.base_model.parameters():
            parameter.requires_grad = False
        trained = {key.split(".")[0] for key, parameter in each.named_parameters() if parameter.requires_grad}
        assert trained == {"classifier"}
    states = model(**batch, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.base_model(**batch).last_hidden_state, states, atol=1e-5, rtol=0)
    base = load(name, "RiNALMoModel")
    assert base.base_model is base


def test_a_fresh_head_never_takes_the_place_of_a_trained_one(tmp_path):
    """A head that the class does not have; one for something else may be new, as after pre-training."""
    with pytest.raises(CheckpointError, match="predicts by its partner_head, which RiNALMoForSecondaryStructurePred"):
        rinalmo.RiNALMoForSecondaryStructurePrediction.from_pretrained("nano-fold")
    new = rinalmo.RiNALMoForSecondaryStructurePrediction.from_pretrained("nano-fold", ignore_mismatched_sizes=True)
    assert new.structure_head
    assert AutoModelForSequenceClassification.from_pretrained(rinalmo.resolve("nano-fold")).sequence_head


def test_a_folder_with_an_adapter_is_never_its_base(name, batch, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    tuned = peft.get_peft_model(AutoModelForMaskedLM.from_pretrained(name), config).eval()
    expected = tuned(**batch).logits
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.config.save_pretrained(tmp_path / "adapter")  # as if the base were there
    for loader in (AutoModelForMaskedLM, rinalmo.RiNALMoForMaskedLM):
        found = loader.from_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(found(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="does not name a base model"):
        rinalmo.RiNALMoForMaskedLM.from_pretrained(tmp_path / "adapter")


def test_predictions_of_tokens_line_up_with_their_labels(name, tokenizer):
    model = load(name, "RiNALMoForTokenPrediction", num_labels=4)
    rows = [dict(tokenizer(text)) | {"labels": [-100, *range(len(text)), -100]} for text in ("ACGU", "AC")]
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    out = model(**batch)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(out.loss, expected)
    labels = batch.pop("labels")
    assert torch.equal(model(**batch).logits, out.logits)  # as for label smoothing, which computes the loss itself
    port = load(name, "RiNALMoForTokenPrediction", num_labels=4, token_logits="nucleotides")
    torch.testing.assert_close(port(**batch).logits[0], out.logits[0, 1:-1])
    inner = labels[:, 1:-1].where(labels[:, 1:-1] >= 0, -100)
    torch.testing.assert_close(port(**batch, labels=inner).loss, out.loss)
    with pytest.raises(InputError, match=r"shape \(2, 6\); the logits need \(2, 4\)"):
        port(**batch, labels=labels)
    port.config.token_logits = "all"
    with pytest.raises(InputError, match=r"shape \(2, 4\); the logits need \(2, 6\)"):
        port(**batch, labels=inner)


def test_label_smoothing_of_tokens(name, tokenizer):
    model = load(name, "RiNALMoForTokenPrediction", num_labels=4)
    rows = [dict(tokenizer(text)) | {"labels": [-100, *range(len(text)), -100]} for text in ("ACGU", "AC")]
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    labels, logits = batch["labels"], model(**{key: each for key, each in batch.items() if key != "labels"}).logits
    found = LabelSmoother(epsilon=0.1)({"logits": logits}, labels)
    pairs = torch.cat([logits[0, 1:5], logits[1, 1:3]]), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(*pairs, label_smoothing=0.1))


def test_token_classification_pipeline(name, tokenizer, tmp_path):
    model = load(name, "RiNALMoForTokenPrediction", num_labels=4, problem_type="single_label_classification")
    found = pipeline("token-classification", model=model, tokenizer=tokenizer)("ACGUAC")
    logits = model(**tokenizer("ACGUAC", return_tensors="pt")).logits[0, 1:-1]
    assert [entry["word"] for entry in found] == list("ACGUAC")
    np.testing.assert_allclose(
        [entry["score"] for entry in found], logits.softmax(-1).max(-1).values.detach(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("single_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.eye(3)[[0, 2]]),
        ("regression", torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])),
    ],
)
def test_problem_types_of_transformers(name, batch, tmp_path, kind, labels):
    """The loss is the one that BERT has for these logits, and what was saved loads."""
    model = load(name, "RiNALMoForSequencePrediction", num_labels=3, problem_type=kind)
    out = model(**batch, labels=labels)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    bert = BertForSequenceClassification(BertConfig(num_labels=3, problem_type=kind, **size))
    bert.classifier.register_forward_hook(lambda *_: out.logits)
    torch.testing.assert_close(out.loss, bert(torch.tensor([[1, 2], [1, 2]]), labels=labels).loss)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.problem_type == kind
    torch.testing.assert_close(again(**batch, labels=labels).loss, out.loss)


@pytest.mark.parametrize("change", [{"problem_type": "no_such"}, {"pooling": "no_such"}, {"token_logits": "no_such"}])
def test_unknown_choices_raise_at_once(name, change):
    for make in (
        lambda: AutoModelForSequenceClassification.from_pretrained(name, **change),
        lambda: load(name, "RiNALMoForTokenPrediction", **change),
        lambda: rinalmo.RiNALMoConfig(**change),
        lambda: setattr(rinalmo.RiNALMoConfig(), *next(iter(change.items()))),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(change))} 'no_such' is unknown"):
            make()


@pytest.mark.parametrize("kind", ["TokenPrediction", "ContactPrediction", "SecondaryStructurePrediction"])
@torch.no_grad()
def test_rows_with_and_without_ends_are_as_alone(name, kind):
    model = load(name, f"RiNALMoFor{kind}", **({"token_logits": "nucleotides"} if "Token" in kind else {}))
    rows = [[1, 6, 7, 8, 9, 2], [6, 7, 8, 9, 6, 7], [1, 6, 7, 8, 9, 6], [6, 7, 8, 9, 6, 2]]
    together = model(torch.tensor(rows)).logits
    assert together.shape[1] == 6
    for number, row in enumerate(rows):
        alone = model(torch.tensor([row])).logits[0]
        n = len(alone)
        assert n == 6 - (row[0] == 1) - (row[-1] == 2)
        mine = together[number, :n] if "Token" in kind else together[number, :n, :n]
        torch.testing.assert_close(mine, alone, atol=1e-4, rtol=1e-4)
        assert not together[number, n:].any()


@torch.no_grad()
def test_masks_with_holes_keep_columns_and_positions(name):
    """As in BERT: a masked token is not seen, its neighbours stay where they are."""
    model = load(name, "RiNALMoModel", attn_implementation="eager")
    ids, mask = torch.tensor([[1, 6, 7, 8, 9, 2]]), torch.tensor([[1, 1, 0, 1, 1, 1]])
    out = model(ids, attention_mask=mask, output_attentions=True)
    first = out.attentions[0][0]
    assert not first[:, 2].any()
    assert not first[:, :, 2].any()
    torch.testing.assert_close(first[:, 5].sum(-1), torch.ones(20))
    assert not out.last_hidden_state[0, 2].any()
    keep = [0, 1, 3, 4, 5]
    alone = model(ids[:, keep], position_ids=torch.tensor([keep])).last_hidden_state
    torch.testing.assert_close(out.last_hidden_state[:, keep], alone, atol=1e-5, rtol=0)
    other = model(torch.where(mask.bool(), ids, 9), attention_mask=mask).last_hidden_state
    assert torch.equal(other, out.last_hidden_state)


def test_states_and_attentions_lie_on_the_graph(name, batch):
    model = load(name, "RiNALMoForTokenPrediction")
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    for tensor in (*out.hidden_states, *out.attentions):
        tensor.retain_grad()
    out.logits.sum().backward()
    for tensor in (*out.hidden_states, *out.attentions):
        assert tensor.grad is not None
        assert tensor.grad.any()


@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_options_of_gradient_checkpointing_are_honoured(name, batch, options):
    model = load(name, "RiNALMoForMaskedLM", hidden_dropout=0.0, attention_dropout=0.0).train()
    plain = torch.autograd.grad(model(**batch).logits.sum(), model.encoder.blocks[0].ffn.down.weight)[0]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert model.encoder.checkpointing_function.keywords["use_reentrant"] is options["use_reentrant"]
    model(**batch).logits.sum().backward()
    torch.testing.assert_close(model.encoder.blocks[0].ffn.down.weight.grad, plain, atol=1e-3, rtol=1e-3)


def test_double_backward_with_eager(name, batch):
    model = load(name, "RiNALMoModel", attn_implementation="eager")
    weight = model.encoder.blocks[0].ffn.gate_up.weight
    (first,) = torch.autograd.grad(model(**batch).pooler_output.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.isfinite().all()
    assert second.any()


@pytest.mark.parametrize("kind", ["MaskedLM", "TokenPrediction", "SecondaryStructurePrediction"])
def test_gradients_of_each_row_by_torch_func(name, tokenizer, kind):
    """`vmap` of `grad`, as for differential privacy, gives each row's gradients alone; eager or not."""
    model = load(name, f"RiNALMoFor{kind}", attn_implementation="sdpa" if kind == "MaskedLM" else "eager")
    batch = tokenizer(["ACGUACGU", "AC<mask>U"], padding=True, return_tensors="pt")
    weights = {key: parameter.detach() for key, parameter in model.named_parameters()}

    def output(weights, ids):
        return torch.func.functional_call(model, weights, (ids[None],))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(output), (None, 0))(weights, batch["input_ids"])
    for row, ids in enumerate(batch["input_ids"]):
        model.zero_grad()
        model(ids[None])[0].square().sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                scale = 1e-4 * parameter.grad.abs().max() + 1e-6
                assert (found[key][row] - parameter.grad).abs().max() <= scale, key
    if kind == "MaskedLM":
        with pytest.raises(InputError, match="or vmapped; leave out labels"):
            torch.func.vmap(lambda ids: model(ids[None], labels=ids[None]).loss)(batch["input_ids"])


def test_neftune(name, batch):
    model = load(name, "RiNALMoForMaskedLM")
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, _, out: out + torch.rand(out.size(0), out.size(1), out.size(2))
    )
    assert not torch.allclose(model(**batch).logits, load(name, "RiNALMoForMaskedLM")(**batch).logits)
    hook.remove()


def test_the_tokenizers_hash_does_not_change_with_use(name):
    fingerprint = pytest.importorskip("datasets.fingerprint")
    tokenizer = rinalmo.RnaTokenizer.from_pretrained(name)
    before = fingerprint.Hasher.hash(tokenizer)
    tokenizer(["ACGU", "AC"], padding=True, truncation=True, max_length=5, return_tensors="pt")
    tokenizer("AC", "GU")
    assert fingerprint.Hasher.hash(tokenizer) == before
