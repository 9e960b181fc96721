"""Recipes: what is wrong is named with its key, and the nearest known one."""

import pytest

from rinalmo.data.sources import PrepareRecipe, load_recipe
from rinalmo.errors import InputError
from rinalmo.io.recipe_files import RECIPES, names


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


@pytest.mark.parametrize("name", names("data-"))
def test_every_recipe_of_the_package_is_valid(name):
    assert load_recipe(name) == load_recipe(RECIPES / f"{name}.yaml")


def test_the_defaults_are_the_papers():
    recipe = load_recipe()
    assert recipe == PrepareRecipe()
    assert (recipe.filters.min_length, recipe.filters.max_length) == (16, 8192)
    assert (recipe.clustering.method, recipe.clustering.min_identity, recipe.clustering.coverage) == (
        "mmseqs",
        0.7,
        0.8,
    )


def test_single_values_are_set(recipe_file):
    path = recipe_file("filters: {max_length: 500}")
    recipe = load_recipe(path, ["filters.min_length=20", "split.seed=3", "clustering.method=none"])
    assert (recipe.filters.min_length, recipe.filters.max_length) == (20, 500)
    assert (recipe.split.seed, recipe.clustering.method) == (3, "none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("filter: {}", "no key 'filter'; did you mean filters"),
        ("filters: {minlength: 3}", "no key 'filters.minlength'; did you mean filters.min_length"),
        ("min_identity: 0.5", "no key 'min_identity'; did you mean clustering.min_identity"),
        ("filters: {min_length: -1}", "filters.min_length is -1"),
        ("filters: {min_length: many}", "filters.min_length is 'many'"),
        ("split: {validation_fraction: 2}", "split.validation_fraction is 2"),
        ("split: {validation_fraction: .nan}", "split.validation_fraction is nan"),
        ("clustering: {method: cdhit}", "clustering.method is 'cdhit'"),
        ("sources: {a: {headers: embl}}", "sources.a.headers is 'embl'"),
        ("sources: {a: {tabel: {}}}", "no key 'sources.a.tabel'"),
        ("sources: {a: {table: {family: {column: x, pattern: '('}}}}", "not a regular expression"),
        ("sources: {a: {table: {family: {pattern: x}}}}", "column is missing"),
        ("a: [", "not YAML"),
        ("seed: 1\nseed: 2", "seed occurs twice, line 2"),
        ("- a", "contains no sections"),
        ("", "contains no sections"),
    ],
)
def test_what_is_wrong_is_named(recipe_file, text, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
        load_recipe(recipe_file(text))
    assert str(caught.value).startswith(str(recipe_file(text)))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("override", ["filters", "=3", "filters.=3", "filters.min_lenght=3"])
def test_wrong_overrides(override):
    with pytest.raises(InputError, match=r"--set|did you mean filters.min_length"):
        load_recipe(None, [override])


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean data-nano"):
        load_recipe("data-nanno")
    with pytest.raises(InputError, match="there are data-giga, data-nano"):
        load_recipe("xyz")
