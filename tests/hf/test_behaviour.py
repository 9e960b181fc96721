"""What users of the Hugging Face classes rely on beyond the card's snippets."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

import rinalmo
from rinalmo.errors import CheckpointError, InputError


@pytest.fixture(scope="module")
def name():
    return str(rinalmo.resolve("nano"))


@pytest.fixture(scope="module")
def tokenizer(name):
    return rinalmo.RnaTokenizer.from_pretrained(name)


CLASSES = [
    "RiNALMoModel",
    "RiNALMoForMaskedLM",
    "RiNALMoForSequencePrediction",
    "RiNALMoForTokenPrediction",
    "RiNALMoForContactPrediction",
    "RiNALMoForSecondaryStructurePrediction",
]


@pytest.mark.parametrize("cls", CLASSES)
def test_save_and_load_are_bit_equal(name, tmp_path, cls, tokenizer):
    model = getattr(rinalmo, cls).from_pretrained(name)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = getattr(rinalmo, cls).from_pretrained(tmp_path)
    for (first, a), (second, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert first == second
        assert torch.equal(a, b), first
    batch = tokenizer(["GGUCUCUCUGG"], return_tensors="pt")
    for one, two in zip(model(**batch).to_tuple(), again(**batch).to_tuple(), strict=True):
        assert torch.equal(one, two)


def test_saved_folder_is_in_the_ports_layout(name, tmp_path):
    rinalmo.RiNALMoForMaskedLM.from_pretrained(name).save_pretrained(tmp_path)
    original = load_file(f"{name}/model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert original.keys() == written.keys()
    assert all(torch.equal(original[key], written[key]) for key in original)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "rinalmo"
    assert config["architectures"] == ["RiNALMoForMaskedLM"]
    assert config["tie_word_embeddings"] is False


def test_official_file_and_catalog_name(golden):
    path = golden / "official" / "official_tiny_pretrained.pt"
    model = rinalmo.RiNALMoForMaskedLM.from_pretrained(path)
    assert model.config.num_attention_heads == 20
    assert torch.equal(model.encoder.final_norm.weight, rinalmo.load(path).encoder.final_norm.weight)
    assert rinalmo.RiNALMoForMaskedLM.from_pretrained("nano").config.hidden_size == 320


def test_variants_of_a_folder(name, tmp_path):
    model = rinalmo.RiNALMoForMaskedLM.from_pretrained(name)
    model.save_pretrained(tmp_path)
    weight = model.lm_head.decoder.weight.detach().clone()
    model.half().save_pretrained(tmp_path, variant="fp16")
    found = rinalmo.RiNALMoForMaskedLM.from_pretrained(tmp_path, variant="fp16", dtype="auto")
    assert found.dtype == torch.float16
    exact = rinalmo.RiNALMoForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(exact.lm_head.decoder.weight, weight)
    with pytest.raises(CheckpointError, match=r"model\.fp8\.safetensors' is neither"):
        rinalmo.RiNALMoForMaskedLM.from_pretrained(tmp_path, variant="fp8")


def test_new_head_is_named(name, caplog):
    with caplog.at_level(logging.WARNING, logger="rinalmo"):
        rinalmo.RiNALMoForSequencePrediction.from_pretrained(name, num_labels=4)
    assert "pooler, sequence_head is new" in caplog.text


def test_head_of_another_size_raises_unless_forgiven(name, tmp_path):
    cls = rinalmo.RiNALMoForTokenPrediction
    cls.from_pretrained(name, num_labels=4).save_pretrained(tmp_path)
    assert cls.from_pretrained(tmp_path).token_head.decoder.weight.shape == (4, 320)
    with pytest.raises(CheckpointError, match=r"token_head\.decoder\.weight is of shape \(4, 320\)"):
        cls.from_pretrained(tmp_path, num_labels=7)
    assert cls.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True).config.num_labels == 7


def test_config_that_contradicts_the_tensors(name, tmp_path):
    rinalmo.RiNALMoForMaskedLM.from_pretrained(name).save_pretrained(tmp_path)
    config = rinalmo.RiNALMoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 10**6
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        rinalmo.RiNALMoForMaskedLM.from_pretrained(tmp_path, config=config)


def test_training_reduces_the_loss_and_reaches_every_weight(name, tokenizer):
    model = rinalmo.RiNALMoForSequencePrediction.from_pretrained(name, num_labels=3, problem_type="multiclass").train()
    batch = tokenizer(["GGUCUC", "AAAAAAAACC", "GUGUGUGU"], padding=True, return_tensors="pt")
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bfloat16(name, tokenizer):
    exact = rinalmo.RiNALMoModel.from_pretrained(name)
    rough = rinalmo.RiNALMoModel.from_pretrained(name, dtype=torch.bfloat16)
    batch = tokenizer("GGUCUCUCUGG" * 20, return_tensors="pt")
    a, b = exact(**batch).last_hidden_state, rough(**batch).last_hidden_state
    assert b.dtype == torch.bfloat16
    similarity = torch.nn.functional.cosine_similarity(a, b.float(), dim=-1)
    assert similarity.min() > 0.999


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(name, tokenizer, implementation):
    model = rinalmo.RiNALMoModel.from_pretrained(name, attn_implementation=implementation)
    reference = rinalmo.RiNALMoModel.from_pretrained(name)
    batch = tokenizer(["GGUCUCU", "ACG"], padding=True, return_tensors="pt")
    torch.testing.assert_close(
        model(**batch).last_hidden_state, reference(**batch).last_hidden_state, atol=1e-5, rtol=0
    )


def test_attentions_are_padded(name, tokenizer):
    model = rinalmo.RiNALMoModel.from_pretrained(name)
    batch = tokenizer(["GGUCUCU", "ACG"], padding=True, return_tensors="pt")
    out = model(**batch, output_attentions=True)
    assert len(out.attentions) == 6
    assert out.attentions[0].shape == (2, 20, 9, 9)
    torch.testing.assert_close(out.attentions[0][1, :, :5].sum(-1), torch.ones(20, 5))
    assert not out.attentions[0][1, :, 5:].any()
    assert not out.attentions[0][1, :, :, 5:].any()


def test_mask_is_optional(name, tokenizer):
    model = rinalmo.RiNALMoModel.from_pretrained(name)
    batch = tokenizer(["GGUCUCU", "ACG"], padding=True, return_tensors="pt")
    assert torch.equal(model(batch["input_ids"]).last_hidden_state, model(**batch).last_hidden_state)


def test_additive_mask_is_refused(name):
    model = rinalmo.RiNALMoModel.from_pretrained(name)
    with pytest.raises(InputError, match="attention_mask has negative values"):
        model(torch.tensor([[1, 6, 2]]), torch.tensor([[0.0, 0.0, -1e9]]))


def test_tuple_output(name, tokenizer):
    model = rinalmo.RiNALMoModel.from_pretrained(name)
    batch = tokenizer("ACG", return_tensors="pt")
    states, pooled = model(**batch, return_dict=False)
    assert states.shape == (1, 5, 320)
    assert pooled.shape == (1, 320)


@pytest.mark.parametrize(
    ("cls", "labels"),
    [
        ("RiNALMoForTokenPrediction", torch.zeros(2, 4, dtype=torch.long)),
        ("RiNALMoForTokenPrediction", torch.zeros(7, dtype=torch.long)),
        ("RiNALMoForContactPrediction", torch.zeros(2, 7, 6, dtype=torch.long)),
        ("RiNALMoForMaskedLM", torch.zeros(2, 7, dtype=torch.long)),
        ("RiNALMoForSequencePrediction", torch.zeros(3, dtype=torch.long)),
    ],
)
def test_labels_that_do_not_fit(name, tokenizer, cls, labels):
    model = getattr(rinalmo, cls).from_pretrained(name)
    batch = tokenizer(["GGUCUCU", "ACG"], padding=True, return_tensors="pt")
    with pytest.raises(InputError, match=r"shape"):
        model(**batch, labels=labels)


def test_token_loss_ignores_padding(name, tokenizer):
    """The loss of a padded batch is the mean over its real nucleotides, whatever the labels at padding say."""
    model = rinalmo.RiNALMoForTokenPrediction.from_pretrained(name, num_labels=3)
    batch = tokenizer(["GGUCUCU", "ACG"], padding=True, return_tensors="pt")
    labels = torch.randint(3, (2, 7))
    loss = model(**batch, labels=labels).loss
    labels[1, 3:] = 0
    assert torch.equal(model(**batch, labels=labels).loss, loss)
    logits = model(**batch, labels=labels).logits
    assert logits.shape == (2, 7, 3)
    flat = torch.cat([logits[0], logits[1, :3]])
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(flat, torch.cat([labels[0], labels[1, :3]])))


def test_token_labels_aligned_with_the_input(name, tokenizer):
    """What `DataCollatorForTokenClassification` makes of labels with -100 at CLS and EOS."""
    from transformers import DataCollatorForTokenClassification

    model = rinalmo.RiNALMoForTokenPrediction.from_pretrained(name, num_labels=3)
    texts, labels = ["GGUCUCU", "ACG"], [[0, 1, 2, 0, 1, 2, 0], [2, 2, 1]]
    rows = [dict(tokenizer(t)) | {"labels": [-100, *y, -100]} for t, y in zip(texts, labels, strict=True)]
    loss = model(**DataCollatorForTokenClassification(tokenizer)(rows)).loss
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    plain = torch.tensor([labels[0], labels[1] + [-100] * 4])
    torch.testing.assert_close(model(**batch, labels=plain).loss, loss)
    shifted = [dict(tokenizer(t)) | {"labels": y} for t, y in zip(texts, labels, strict=True)]
    with pytest.raises(InputError, match="CLS and EOS must have -100"):
        model(**DataCollatorForTokenClassification(tokenizer)(shifted))


def test_trainer_trains_saves_and_resumes(name, tokenizer, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = rinalmo.RiNALMoForSequencePrediction.from_pretrained(name, num_labels=2, problem_type="multiclass")
    rows = [dict(tokenizer("ACGU" * n)) | {"labels": n % 2} for n in range(1, 9)]
    options = {
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "save_total_limit": 1,
    }
    arguments = TrainingArguments(str(tmp_path), max_steps=2, **options)
    Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()
    again = rinalmo.RiNALMoForSequencePrediction.from_pretrained(tmp_path / "checkpoint-2")
    torch.testing.assert_close(again.sequence_head.decoder.weight, model.sequence_head.decoder.weight.cpu())


def test_auto_dtype_and_catalog_names(name):
    assert rinalmo.RiNALMoModel.from_pretrained(name, dtype="auto").dtype == torch.float32
    assert rinalmo.RnaTokenizer.from_pretrained("nano")("ACGU")["input_ids"] == [1, 6, 7, 8, 9, 2]


def test_head_options_win_over_num_labels():
    config = rinalmo.RiNALMoConfig(num_labels=2, head={"num_labels": 5})
    assert config.num_labels == 5
    assert len(config.id2label) == 5
    with pytest.raises(InputError, match="head is"):
        rinalmo.RiNALMoConfig(head=[1])


def test_structure_labels_of_another_kind(name, tokenizer):
    cls = rinalmo.RiNALMoForSecondaryStructurePrediction
    with pytest.raises(InputError, match="pairs are binary"):
        cls.from_pretrained(name, problem_type="multiclass")
    with pytest.raises(InputError, match="do not fit"):
        cls.from_pretrained(name, num_labels=2)(**tokenizer("ACG", return_tensors="pt"), labels=torch.zeros(1, 3, 3))


def test_structure_head_does_not_depend_on_the_batch(name, tokenizer):
    model = rinalmo.RiNALMoForSecondaryStructurePrediction.from_pretrained(name)
    texts = ["GGUCUCUAUC", "ACGUUU"]
    together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for row, text in enumerate(texts):
        alone = model(**tokenizer(text, return_tensors="pt")).logits
        n = len(text)
        torch.testing.assert_close(together[row, :n, :n], alone[0], atol=1e-5, rtol=0)
        assert not together[row, n:].any()


def test_structure_of_a_row_without_nucleotides(name, tokenizer):
    model = rinalmo.RiNALMoForSecondaryStructurePrediction.from_pretrained(name)
    batch = tokenizer(["ACGU", ""], padding=True, return_tensors="pt")
    out = model(**batch, labels=torch.zeros(2, 4, 4))
    assert out.logits.shape == (2, 4, 4, 1)
    assert not out.logits[1].any()
    assert out.loss.isfinite()
    alone = model(**tokenizer([""], return_tensors="pt"), labels=torch.zeros(1, 0, 0))
    assert alone.logits.shape == (1, 0, 0, 1)
    assert alone.loss == 0


@pytest.mark.parametrize("cls", CLASSES)
def test_batch_without_rows(name, cls):
    model = getattr(rinalmo, cls).from_pretrained(name)
    with pytest.raises(InputError, match="input_ids has no rows"):
        model(torch.zeros(0, 3, dtype=torch.long))


def test_unknown_problem_type_raises_at_construction():
    with pytest.raises(InputError, match="problem_type 'ranking'"):
        rinalmo.RiNALMoConfig(problem_type="ranking")


def test_config_defaults_are_gigas_and_survive_json(tmp_path):
    config = rinalmo.RiNALMoConfig(num_labels=3, problem_type="multiclass", threshold=0.13)
    assert (config.hidden_size, config.num_hidden_layers) == (1280, 33)
    config.save_pretrained(tmp_path)
    again = rinalmo.RiNALMoConfig.from_pretrained(tmp_path)
    assert (again.num_labels, again.problem_type, again.threshold) == (3, "multiclass", 0.13)
    assert rinalmo.RiNALMoConfig().num_labels == 1


def test_trainer_state_dict_in_the_ports_names(name):
    """A Trainer reloads `model.safetensors` with `load_state_dict`; our classes understand what they wrote."""
    model = rinalmo.RiNALMoForMaskedLM.from_pretrained(name)
    state = load_file(f"{name}/model.safetensors")
    with torch.no_grad():
        model.encoder.final_norm.weight.zero_()
    model.load_state_dict(state)
    assert torch.equal(model.encoder.final_norm.weight, state["model.encoder.layer_norm.weight"])


def test_gradient_checkpointing_is_switched_on(name):
    model = rinalmo.RiNALMoForMaskedLM.from_pretrained(name)
    model.gradient_checkpointing_enable()
    assert model.encoder.gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.encoder.gradient_checkpointing


def test_new_model_from_a_config():
    config = rinalmo.RiNALMoConfig(hidden_size=40, num_hidden_layers=1, num_attention_heads=2, intermediate_size=160)
    model = rinalmo.RiNALMoForMaskedLM(config)
    assert 0.015 < model.encoder.embedding.weight.std() < 0.025
    assert torch.equal(model.encoder.blocks[0].ffn.beta, torch.ones(1))
    assert not model.lm_head.decoder.bias.any()
