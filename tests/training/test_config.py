"""Recipes: what is in the package, and what is said about a wrong one."""

from dataclasses import fields

import pytest
import torch
import yaml

from rinalmo.errors import CheckpointError, InputError
from rinalmo.io.recipe_files import RECIPES, names, parse
from rinalmo.model.config import ModelConfig
from rinalmo.training.recipes import PRETRAIN_PREFIX, ModelRecipe, Recipe, load_recipe
from rinalmo.training.trainer import with_precision

NAMES = ["giga", "mega", "micro", "nano", "nano-cpu", "tiny"]


def test_the_package_brings_these_recipes():
    assert names(PRETRAIN_PREFIX) == [f"pretrain-{name}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_whole_and_opens_with_cost_reach_and_command(name):
    recipe = load_recipe(f"pretrain-{name}")
    assert recipe.model.config().hidden_size
    comment = (RECIPES / f"pretrain-{name}.yaml").read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert "Costs" in comment
    assert "Reaches" in comment
    assert f"rinalmo pretrain pretrain-{name} " in comment


def test_giga_has_the_papers_numbers():
    recipe = load_recipe("pretrain-giga")
    assert recipe.model.config() == ModelConfig.preset("giga")
    assert recipe.model.config().attention_dropout == recipe.model.config().hidden_dropout == 0.1
    assert recipe.data.sequences_per_batch == 1344
    assert recipe.data.max_length == 1022
    assert recipe.data.weights.model_dump() == {"source": {}, "family": {}, "cluster_exponent": 0.0}
    assert recipe.data.masking.model_dump() == {"selected": 0.15, "masked": 0.8, "replaced": 0.1}
    assert (recipe.train.epochs, recipe.train.max_steps, recipe.train.clip) == (6, None, 1.0)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (5e-5, 0.01)
    assert (recipe.schedule.start_lr, recipe.schedule.warmup_steps, recipe.schedule.min_lr) == (1e-7, 2000, 1e-5)


@pytest.mark.parametrize("name", ["mega", "micro", "nano"])
def test_the_smaller_published_sizes_have_the_higher_rate(name):
    recipe = load_recipe(f"pretrain-{name}")
    assert recipe.model.config() == ModelConfig.preset(name)
    assert (recipe.optimizer.lr, recipe.schedule.min_lr) == (1e-4, 1e-5)


def test_model_section_names_fields_of_the_config():
    assert set(ModelRecipe.model_fields) - {"preset"} <= {field.name for field in fields(ModelConfig)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "no key 'optimizer.lrr'; did you mean optimizer.lr?"),
        ("checkpoint_every=5", "no key 'checkpoint_every'; did you mean train.checkpoint_every?"),
        ("train.warmup_steps=5", "no key 'train.warmup_steps'; did you mean schedule.warmup_steps?"),
        ("data.weights.exponent=1", "did you mean data.weights.cluster_exponent?"),
        ("train.max_steps=many", "train.max_steps is 'many': input should be a valid integer"),
        ("train.max_steps=0", "train.max_steps is 0: input should be greater than 0"),
        ("data.max_length=0", "data.max_length is 0: input should be greater than 0"),
        ("data.micro_tokens=0", "data.micro_tokens is 0: input should be greater than 0"),
        ("data.sequences_per_batch=0", "data.sequences_per_batch is 0: input should be greater than 0"),
        ("data.weights.source.rfam=-1", "data.weights.source.rfam is -1: input should be greater than or equal to 0"),
        ("data.weights.source.rfam=.nan", "data.weights.source.rfam is nan: input should be"),
        ("data.masking.masked=1.5", "data.masking.masked is 1.5: input should be less than or equal to 1"),
        ("data.masking.masked=0.95", "masked and replaced must be at most 1 together"),
        ("optimizer.lr=.nan", "optimizer.lr is nan: input should be"),
        ("train.precision=fp8", "train.precision is 'fp8': input should be 'auto', 'bf16', 'fp16' or 'fp32'"),
        ("train", "--set 'train': give section.key=value"),
        ("=3", "--set '=3': give section.key=value"),
    ],
)
def test_errors_name_key_value_and_the_nearest_key(override, message):
    with pytest.raises(InputError) as caught:
        load_recipe("pretrain-nano", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_converted_like_the_file():
    recipe = load_recipe(
        "pretrain-nano",
        [
            "optimizer.lr=5e-5",
            "model.hidden_size=160",
            "train.max_steps=7",
            "data.weights.source.rfam=2",
            "init=nano",
        ],
    )
    assert (recipe.optimizer.lr, recipe.model.config().hidden_size, recipe.train.max_steps) == (5e-5, 160, 7)
    assert recipe.data.weights.source == {"rfam": 2.0}
    assert recipe.init == "nano"


def test_names_and_files(tmp_path):
    with pytest.raises(InputError, match="no recipe 'pretrain-gigga' and no such file; did you mean pretrain-giga"):
        load_recipe("pretrain-gigga")
    assert load_recipe("pretrain-giga.yaml") == load_recipe("pretrain-giga")
    file = tmp_path / "mine.yaml"
    for text, message in [
        ("train: [", "not YAML"),
        ("", "contains no sections"),
        ("train: {max_steps: 3, max_steps: 4}", "max_steps occurs twice"),
        ("model: !!python/object/apply:os.system ['true']", "not YAML"),
        ("train: {max_steps: 3}", "optimizer is missing"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_recipe(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not YAML"):
        load_recipe(file)


def test_a_recipe_written_out_is_the_same_recipe():
    recipe = load_recipe("pretrain-nano-cpu", ["data.store=somewhere"])
    assert parse(Recipe, yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), "dump") == recipe


def test_sizes_that_are_no_model_are_refused():
    with pytest.raises(CheckpointError, match="attention heads"):
        load_recipe("pretrain-nano", ["model.hidden_size=321"]).model.config()


@pytest.mark.parametrize("level", ["plain", "fp32"])
def test_the_precision_of_a_run_keeps_to_the_cap(monkeypatch, make_recipe, level):
    monkeypatch.setenv("RINALMO_CPU", level)
    cpu = torch.device("cpu")
    assert with_precision(make_recipe(train__precision="auto"), cpu).train.precision == "fp32"
    with pytest.raises(InputError, match="RINALMO_CPU"):
        with_precision(make_recipe(train__precision="bf16"), cpu)
