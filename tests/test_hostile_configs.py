"""Configs that are damaged, or made to do harm: one sentence, or a config that can be written down and read again."""

import re
from pathlib import Path

import pytest
import yaml
from hostile import damaged, examples, for_all, not_for_ever, one_sentence
from hypothesis import strategies as st

from fastdgl import config as configs
from fastdgl.config import ConfigError, read

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
BASE = "images: {path: digits}\nmodel: {resolution: 32}\n"


@pytest.fixture
def file(tmp_path):
    def file(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
        return path
    return file


def good_or_refused(path, overrides=()):
    """The runs of a file, which can be written down and read again; or None where it is refused in a sentence."""
    with not_for_ever():
        try:
            runs = read(path, overrides)
        except ConfigError as error:
            one_sentence(error)
            return None
        for run in runs:
            text = configs.to_yaml(run)
            assert configs.from_dict(yaml.safe_load(text.encode()), "again") == run
            assert re.fullmatch(r"[^/\0]+", run.description)
    return runs


@examples(few=30, many=5000)
def test_a_damaged_config_is_read_or_refused(examples, file):
    for_all(damaged([path.read_bytes() for path in SHIPPED]), examples, lambda data: good_or_refused(file(data)))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**6), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4),
    st.sampled_from([10**400, -1, 0, 2**31, 2**63, 1e308, 5e-324, "stage:a", "digits", "../..", "/etc", "", "\0", "\ud800", "a" * 300, "..", "${HOME}"]))
KEYS = sorted({part for key in configs._all_keys(configs.StyleGAN2Config) for part in key.split(".")} | {"stages", "sn_eps", "hier", "<<"})
values = st.recursive(scalars, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=3), st.integers()), inner, max_size=4)), max_leaves=10)


@st.composite
def documents(draw):
    """The values of a shipped config, with some of them replaced by others of any kind and size."""
    data = yaml.safe_load(draw(st.sampled_from(SHIPPED)).read_text())
    for _ in range(draw(st.integers(1, 3))):
        here = data
        for name in draw(st.lists(st.sampled_from(KEYS), max_size=2)):
            if isinstance(here.get(name), dict):
                here = here[name]
        here[draw(st.one_of(st.sampled_from(sorted(map(str, here)) or ["name"]), st.sampled_from(KEYS)))] = draw(values)
    return data


@examples(few=50, many=10000)
def test_any_values_are_taken_or_refused(examples, file):
    for_all(documents(), examples, lambda data: good_or_refused(file(yaml.dump(data, allow_unicode=True))))


@examples(few=50, many=10000)
def test_any_override_is_taken_or_refused(examples, file):
    path = file(BASE + "stages: {a: {}, b: {guidance: {teachers: [{checkpoint: 'stage:a'}]}}}\n")
    keys = st.lists(st.one_of(st.sampled_from([*KEYS, "a", "b", "0", "1", "-1", "²", "9" * 5000]), st.text(max_size=3)), min_size=1, max_size=5)
    texts = st.one_of(values.map(lambda value: yaml.dump(value, default_flow_style=True)), st.text(max_size=10),
                      st.sampled_from(["[" * 600, "&a [*a]", "!!bool x", "*a", "!!python/name:os.system", "2020-99-99", "1" * 5000, "0x" + "f" * 5000]))
    overrides = st.lists(st.tuples(keys.map(".".join), texts).map("=".join), min_size=1, max_size=2)
    for_all(overrides, examples, lambda given: good_or_refused(path, given))


def bomb(open_, close):
    """Nine lines that stand for 10^9 values."""
    return "".join(f"{name}: &{name} {open_}{', '.join([f'*{inner}'] * 10)}{close}\n" for inner, name in zip("abcdefghi", "bcdefghij"))


HARM = {
    "deep-lists": "a: " + "[" * 600,
    "deep-sections": BASE + "name: " + "{a: " * 3000 + "1" + "}" * 3000,
    "deep-lines": "\n".join(" " * i + "a:" for i in range(400)),
    "itself": BASE + "engine: &a {zero_options: *a}",
    "list-in-itself": BASE + "guidance: &a [*a]",
    "billion-laughs": "a: &a [1, 1]\n" + bomb("[", "]") + BASE,
    "billion-merges": "a: &a {x: 1}\n" + bomb("{<<: [", "]}") + BASE,
    "many-keys": BASE + "name: {" + ", ".join(f"k{i}: 1" for i in range(2000)) + "}\n<<: {}",
    "long": BASE + "#" * 200_000,
    "python-call": BASE + "name: !!python/object/apply:os.system ['touch ran']",
    "python-name": BASE + "name: !!python/name:os.system",
    "no-day": BASE + "name: 2020-99-99",
    "no-hour": BASE + "name: 2001-12-15 25:99:99",
    "no-timestamp": BASE + "name: !!timestamp x",
    "no-bool": BASE + "seed: !!bool xyz",
    "no-int": BASE + "seed: !!int foo",
    "no-float": BASE + "seed: !!float abc",
    "digits": BASE + "seed: " + "9" * 5000,
    "hexadecimal-digits": BASE + "seed: 0x" + "f" * 5000,
    "bytes": BASE + "engine: {zero_options: {a: !!binary /w==}}",
    "set": BASE + "engine: {zero_options: {a: !!set {b, c}}}",
    "nan": BASE + "engine: {zero_options: {a: [.nan]}}",
    "infinite": BASE + "train: {kimg: .inf}",
    "more-than-a-float": "images: {path: digits}\nmodel: {resolution: 32, channel_base: 1" + "0" * 290 + ", channel_max: 1" + "0" * 290 + "}",
    "images-without-end": BASE + "train: {kimg: 1e308}",
    "layers-without-end": "images: {path: digits}\nmodel: {resolution: 32, mapping_layers: 1000000000}",
    "batch": BASE + "train: {batch: 1" + "0" * 200 + "}",
    "path-of-no-file": BASE + 'outdir: "a\\0b"',
    "half-a-character": BASE + 'outdir: "\\ud800"',
    "terminal": BASE + '"\\e[2J": 1',
    "two-lines": BASE + '"a\\nb": 1',
    "name-elsewhere": BASE + "name: ../../x",
    "name-at-the-root": BASE + "name: /etc/x",
    "name-too-long": BASE + "name: " + "a" * 10_000,
    "name-with-a-newline": BASE + 'name: "a\\n"',
    "stage-elsewhere": BASE + "stages: {../x: {}}",
    "stages-alike": BASE + "stages: {1: {}, ! '1': {}}",
    "no-text": b"\xff\xfe\xff",
    "control-characters": BASE + "name: \x07",
}


@pytest.mark.parametrize("text", HARM.values(), ids=HARM.keys())
def test_what_is_made_to_do_harm_is_refused(file, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert good_or_refused(file(text)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("override", ["train.batch=" + "[" * 600, "a." * 5000 + "b=1", "guidance.teachers." + "9" * 5000 + "=1", "train.batch=&a [*a]",
                                      "name=" + "x" * 10**6])
def test_overrides_made_to_do_harm_are_refused(file, override):
    assert good_or_refused(file(BASE + "guidance: {teachers: []}"), [override]) is None


def test_what_repeats_within_reason_is_taken(file):
    runs = good_or_refused(file("base: &base {resolution: 32}\n".replace("base: ", "model: ") + "images: {path: digits}\nstages:\n  a: {}\n  b: {model: *base}\n"))
    assert [run.model.resolution for run in runs] == [32, 32]
