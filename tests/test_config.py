"""Configs: what is shipped is valid, and what a person mistypes is one sentence with its key."""

from pathlib import Path

import pytest
import torch
import yaml

from fastdgl import config as configs
from fastdgl.config import ConfigError
from fastdgl.models import biggan

SHIPPED = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
BASE = "images: {path: digits}\nmodel: {resolution: 32}\n"
STAGES = """
guidance: {teachers: [{checkpoint: a.safetensors}, {checkpoint: b.safetensors}]}
train: {batch: 8}
stages:
  teacher: {}
  student: {train: {batch: 16}, model: {generator_fraction: 0.5}}
"""


def read(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return configs.read(path, overrides)


def complaint(tmp_path, text, *overrides):
    """The sentence of the error, without the file it begins with."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, *overrides)
    sentence = str(error.value)
    assert "\n" not in sentence and "pydantic" not in sentence
    return sentence.removeprefix(f"{tmp_path / 'run.yaml'}: ")


def claims(*rows):
    """Cases of (text, what is said), named by the text."""
    return [pytest.param(text, said, id=text) for text, said in rows]


# what is shipped

@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
class TestShipped:
    def test_is_valid(self, path):
        runs = configs.read(path)
        assert runs and len({run.description for run in runs}) == len(runs)

    def test_runs_on_one_rank(self, path):
        for run in configs.read(path):
            run.check_world_size(1)

    def test_survives_being_written_and_read(self, path, tmp_path):
        for run in configs.read(path):
            # as a run folder holds it, where references to stages have become files
            teachers = [teacher.model_copy(update={"checkpoint": "teacher.safetensors"}) for teacher in run.guidance.teachers]
            run = run.model_copy(update={"start": run.start and "start.safetensors",
                                         "guidance": run.guidance.model_copy(update={"teachers": teachers})})
            assert read(tmp_path, configs.to_yaml(run)) == [run]
            assert configs.from_dict(configs.to_dict(run), "a snapshot") == run


def test_quickstart_is_shipped():
    assert "quickstart" in [path.stem for path in SHIPPED]


# what is read

def test_defaults_are_the_papers(tmp_path):
    run, = read(tmp_path, BASE)
    assert (run.optimizer.generator.lr, run.optimizer.generator.beta1, run.optimizer.generator.beta2, run.optimizer.generator.eps) == (0.002, 0, 0.99, 1e-8)
    assert run.optimizer.discriminator == run.optimizer.generator
    assert (run.loss.r1_interval, run.loss.path_length_interval, run.loss.path_length_weight, run.loss.path_length_decay) == (16, 4, 2, 0.01)
    assert (run.loss.style_mixing, run.loss.path_length_batch_shrink, run.guidance.weight, run.train.ema_kimg) == (0.9, 2, 0.1, 10)
    assert (run.model.mapping_layers, run.model.w_dim, run.model.conv_clamp, run.model.narrow_const, run.model.mbstd_group) == (8, 512, 256, False, 4)
    assert (run.model.channel_base, run.model.channel_max, run.train.batch, run.train.kimg) == (32768, 512, 32, 25000)


@pytest.mark.parametrize(("given", "gamma"), [("null", 0.0002 * 32**2 / 16), ("10", 10), ("0", 0)], ids=["heuristic", "given", "none"])
def test_r1_gamma(tmp_path, given, gamma):
    run, = read(tmp_path, BASE, f"loss.r1_gamma={given}", "train.batch=16")
    assert run.r1_gamma == gamma


def test_a_run_without_stages_has_the_name_alone(tmp_path):
    run, = read(tmp_path, BASE + "name: mine")
    assert (run.stage, run.description) == ("", "mine")


def test_stages_are_runs_in_order_that_share_the_rest(tmp_path):
    teacher, student = read(tmp_path, BASE + STAGES)
    assert (teacher.description, student.description) == ("run-teacher", "run-student")
    assert (teacher.train.batch, student.train.batch) == (8, 16)
    assert (teacher.model.generator_fraction, student.model.generator_fraction) == (1, 0.5)
    assert teacher.model.resolution == student.model.resolution == 32


def test_a_stage_replaces_a_list_whole(tmp_path):
    teacher, _, guided = read(tmp_path, BASE + STAGES + "  guided: {guidance: {teachers: []}}\n")
    assert len(teacher.guidance.teachers) == 2 and guided.guidance.teachers == []


def test_a_stage_may_start_from_an_earlier_one(tmp_path):
    runs = read(tmp_path, BASE + "stages: {one: {}, two: {start: 'stage:one', guidance: {teachers: [{checkpoint: 'stage:one'}]}}}")
    assert runs[1].start == runs[1].guidance.teachers[0].checkpoint == "stage:one"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", "+1e-3", "10e-4"])
def test_a_number_is_a_number_however_written(tmp_path, text):
    from_file, = read(tmp_path, BASE + f"optimizer: {{generator: {{lr: {text}}}}}")
    overridden, = read(tmp_path, BASE, f"optimizer.generator.lr={text}")
    assert from_file.optimizer.generator.lr == overridden.optimizer.generator.lr == 0.001


def test_a_part_repeated_by_yaml_can_be_changed_in_one_place(tmp_path):
    text = BASE + "stages:\n  one: &same {train: {batch: 8}}\n  two: *same\n"
    one, two = read(tmp_path, text, "stages.one.train.batch=4")
    assert (one.train.batch, two.train.batch) == (4, 8)


def test_a_part_repeated_within_a_run_too(tmp_path):
    run, = read(tmp_path, BASE + "optimizer: {generator: &same {lr: 1e-3}, discriminator: *same}", "optimizer.generator.lr=1e-4")
    assert (run.optimizer.generator.lr, run.optimizer.discriminator.lr) == (1e-4, 1e-3)


# overrides

def test_an_override_reaches_every_stage(tmp_path):
    assert [run.train.batch for run in read(tmp_path, BASE + STAGES, "train.batch=4")] == [4, 4]


@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
def test_an_override_of_one_stage_has_the_last_word(tmp_path, order):
    overrides = ["stages.student.train.batch=12", "train.batch=4"][::order]
    assert [run.train.batch for run in read(tmp_path, BASE + STAGES, *overrides)] == [4, 12]


def test_the_last_of_two_overrides_counts(tmp_path):
    assert read(tmp_path, BASE, "train.batch=4", "train.batch=8")[0].train.batch == 8


def test_an_override_makes_the_section_it_needs(tmp_path):
    assert read(tmp_path, BASE, "optimizer.generator.lr=0.5")[0].optimizer.generator.lr == 0.5
    assert read(tmp_path, BASE + "train:\n", "train.batch=8")[0].train.batch == 8


def test_an_override_reaches_into_a_list(tmp_path):
    runs = read(tmp_path, BASE + STAGES, "guidance.teachers.1.checkpoint=c", "stages.student.guidance.teachers.0.mode=updated")
    assert [[teacher.checkpoint for teacher in run.guidance.teachers] for run in runs] == [["a.safetensors", "c"]] * 2
    assert [run.guidance.teachers[0].mode for run in runs] == ["frozen", "updated"]


@pytest.mark.parametrize(("override", "get", "value"), [
    pytest.param("train.ema_rampup=null", lambda run: run.train.ema_rampup, None, id="null"),
    pytest.param("train.ema_rampup=0.05", lambda run: run.train.ema_rampup, 0.05, id="number"),
    pytest.param("train.kimg=1", lambda run: run.train.kimg, 1, id="integer-for-a-number"),
    pytest.param("images.mirror=true", lambda run: run.images.mirror, True, id="true"),
    pytest.param("start=a=b.safetensors", lambda run: run.start, "a=b.safetensors", id="equals-sign"),
    pytest.param("guidance.teachers=[]", lambda run: run.guidance.teachers, [], id="empty-list"),
    pytest.param("guidance.teachers=[{checkpoint: x}]", lambda run: run.guidance.teachers[0].checkpoint, "x", id="list"),
    pytest.param("engine.zero_options.overlap_comm=true", lambda run: run.engine.zero_options, {"overlap_comm": True}, id="free-section"),
    pytest.param("guidance.teachers.0.checkpoint=x", lambda run: run.guidance.teachers[0].checkpoint, "x", id="first-entry-of-a-list"),
    pytest.param("metrics.names=fid50k_full", lambda run: run.metrics.names, ["fid50k_full"], id="one-entry-for-a-list"),
    pytest.param("metrics.names=fid50k_full, is50k", lambda run: run.metrics.names, ["fid50k_full", "is50k"], id="entries-with-commas"),
    pytest.param("metrics.names.0=is50k", lambda run: run.metrics.names, ["is50k"], id="first-text-of-a-list"),
    pytest.param("guidance.features={checkpoint: x, generators: {weight: 1, resolutions: 8}}",
                 lambda run: run.guidance.features.generators.resolutions, [8], id="one-number-for-a-list"),
    pytest.param("guidance.features={checkpoint: x, images: {weight: 1, modules: 'b32,b16', distances: l1}}",
                 lambda run: run.guidance.features.images.modules, ["b32", "b16"], id="texts-with-commas"),
    pytest.param("train={batch: 4}", lambda run: run.train.batch, 4, id="section"),
])
def test_an_override_is_yaml(tmp_path, override, get, value):
    assert get(read(tmp_path, BASE, override)[0]) == value


# what is refused

@pytest.mark.parametrize(("text", "said"), claims(
    ("trian: {batch: 8}", "trian: there is no such key; did you mean train?"),
    ("train: {bacth: 8}", "train.bacth: there is no such key; did you mean batch?"),
    ("optimizer: {generator: {bet1: 0}}", "optimizer.generator.bet1: there is no such key; did you mean beta1?"),
    ("guidance: {teachers: [{checkpoint: a}, {checkpoint: b, moed: frozen}]}", "guidance.teachers.1.moed: there is no such key; did you mean mode?"),
    ("batch: 8", "batch: there is no such key; did you mean train.batch or metrics.batch?"),
    ("teachers: []", "teachers: there is no such key; did you mean guidance.teachers?"),
    ("train: {lr: 1}", "train.lr: there is no such key; did you mean optimizer.generator.lr or optimizer.discriminator.lr?"),
    ("images2: 5", "images2: there is no such key; did you mean images?"),
    ("guidance: {zzz: 1}", "guidance.zzz: there is no such key; expected one of weight, ramp_kimg, combine, teachers, "),
    ("5: 6", "5: there is no such key; expected one of name, stage, seed, "),
    ("guidance: {6: 7}", "guidance.6: there is no such key; expected one of weight, ramp_kimg, combine, teachers, "),
))
def test_names_an_unknown_key_and_the_nearest_one(tmp_path, text, said):
    sentence = complaint(tmp_path, BASE + text)
    assert sentence.startswith(said) if said.endswith(", ") else sentence == said


def test_names_the_unknown_key_before_the_one_it_was_meant_to_be(tmp_path):
    sentence = complaint(tmp_path, "images: {path: digits}\nmodel: {resolutoin: 32}")
    assert sentence == "model.resolutoin: there is no such key; did you mean resolution?"


@pytest.mark.parametrize(("text", "said"), claims(
    ("train: {batch: '16'}", "train.batch: expected integer, got '16'"),
    ("train: {batch: true}", "train.batch: expected integer, got true"),
    ("train: {batch: 16.0}", "train.batch: expected integer, got 16.0"),
    ("train: {batch: }", "train.batch: expected integer, got nothing"),
    ("train: {kimg: true}", "train.kimg: expected number, got true"),
    ("train: {kimg: 5k}", "train.kimg: expected number, got '5k'"),
    ("train: {kimg: .inf}", "train.kimg: expected a finite number, got inf"),
    ("guidance: {weight: .nan}", "guidance.weight: expected a finite number, got nan"),
    ("optimizer: {generator: {lr: fast}}", "optimizer.generator.lr: expected number, got 'fast'"),
    ("keep_optimizer: 1", "keep_optimizer: expected true or false, got 1; write true"),
    ("engine: {allow_tf32: 0}", "engine.allow_tf32: expected true or false, got 0; write false"),
    ("engine: {allow_tf32: 2}", "engine.allow_tf32: expected true or false, got 2"),
    ("name: 5", "name: expected text, got 5"),
    ("start: 5", "start: expected text, got 5"),
    ("train: 5", "train: expected keys and values, got 5"),
    ("train:", "train: expected keys and values, got nothing"),
    ("train: [batch]", "train: expected keys and values, got ['batch']"),
    ("guidance: {teachers: {checkpoint: a}}", "guidance.teachers: expected a list, got {'checkpoint': 'a'}"),
    ("guidance: {teachers: [a]}", "guidance.teachers.0: expected keys and values, got 'a'"),
    ("guidance: {combine: mean}", "guidance.combine: expected 'uniform' or 'dynamic', got 'mean'"),
    ("engine: {zero_stage: 4}", "engine.zero_stage: expected 0, 1, 2 or 3, got 4"),
    ("engine: {zero_stage: true}", "engine.zero_stage: expected 0, 1, 2 or 3, got 'true'"),
    ("engine: {kind: horovod}", "engine.kind: expected 'deepspeed' or 'torch', got 'horovod'"),
    ("engine: {zero_options: 5}", "engine.zero_options: expected keys and values, got 5"),
))
def test_names_a_wrong_type(tmp_path, text, said):
    assert complaint(tmp_path, BASE + text) == said


@pytest.mark.parametrize(("model", "said"), claims(
    ("{resolution: '32'}", "model.resolution: expected integer, got '32'"),
    ("{resolution: 33}", "model.resolution: 33 is not a power of two of at least 8"),
    ("{resolution: 4}", "model.resolution: 4 is not a power of two of at least 8"),
    ("{resolution: 32, family: stylegan3}", "model.family: expected 'stylegan2' or 'biggan', got 'stylegan3'"),
    ("{resolution: 32, channels: 4}", "model.channels: expected 1 or 3, got 4"),
    ("{resolution: 32, channels: true}", "model.channels: expected 1 or 3, got 'true'"),
    ("{resolution: 32, low_precision: fp16}", "model.low_precision: expected 'float16' or 'bfloat16', got 'fp16'"),
    ("{resolution: 32, generator_fraction: 1/2}", "model.generator_fraction: expected number, got '1/2'"),
    ("{resolution: 32, generator_fraction: 2}", "model.generator_fraction: expected a number less than or equal to 1, got 2"),
    ("{resolution: 32, discriminator_fraction: 0}", "model.discriminator_fraction: expected a number greater than 0, got 0"),
    ("{resolution: 32, generator_fraction: 0.3}",
     "model.generator_fraction: 0.3 of the 512 channels at 4x4 is 153.6; expected a whole number of at least 1"),
    ("{resolution: 1024, channel_base: 1024, discriminator_fraction: 0.5}",
     "model.discriminator_fraction: 0.5 of the 1 channels at 1024x1024 is 0.5; expected a whole number of at least 1"),
    ("{resolution: 32, channel_base: 8}", "model.channel_base: 8 leaves no channel at 16x16; expected at least 32"),
))
def test_names_what_the_networks_cannot_be(tmp_path, model, said):
    assert complaint(tmp_path, f"images: {{path: digits}}\nmodel: {model}") == said


@pytest.mark.parametrize(("text", "said"), claims(
    ("train: {batch: 0}", "train.batch: expected a number greater than 0, got 0"),
    ("train: {keep_snapshots: 0}", "train.keep_snapshots: expected 'all' or a whole number of at least 1, got 0"),
    ("train: {keep_snapshots: true}", "train.keep_snapshots: expected 'all' or a whole number of at least 1, got true"),
    ("train: {keep_snapshots: some}", "train.keep_snapshots: expected 'all' or a whole number of at least 1, got 'some'"),
    ("seed: -1", "seed: expected a number greater than or equal to 0, got -1"),
    ("seed: 4294967296", "seed: expected a number less than 4294967296, got 4294967296"),
    ("guidance: {weight: -0.1}", "guidance.weight: expected a number greater than or equal to 0, got -0.1"),
    ("loss: {style_mixing: 1.5}", "loss.style_mixing: expected a number less than or equal to 1, got 1.5"),
    ("optimizer: {generator: {beta2: 1}}", "optimizer.generator.beta2: expected a number less than 1, got 1"),
    ("name: a/b", "name: expected letters, digits, '.', '_' and '-', which make a folder's name, got 'a/b'"),
    ("name: ''", "name: expected letters, digits, '.', '_' and '-', which make a folder's name, got ''"),
    ("stages: {a/b: {}}", "stages.a/b: stage: expected letters, digits, '.', '_' and '-', which make a folder's name, got 'a/b'"),
))
def test_names_a_value_out_of_range(tmp_path, text, said):
    assert complaint(tmp_path, BASE + text) == said


@pytest.mark.parametrize(("text", "said"), claims(
    ("keep_optimizer: true", "keep_optimizer: true needs start, the run whose optimizers to keep"),
    ("engine: {kind: torch, precision: bf16}", "engine.precision: bf16 needs kind: deepspeed; plain torch trains in fp32"),
    ("engine: {zero_options: {stage: 3}}", "engine.zero_options: `stage` is set by zero_stage"),
    ("engine: {kind: torch, zero_stage: 3}", "engine.zero_stage: 3 needs kind: deepspeed; plain torch keeps all parameters on every rank"),
    ("guidance: {features: {checkpoint: a, images: {weight: 1}}}\nengine: {zero_stage: 3}",
     "engine.zero_stage: 3 does not go with guidance.features, which has not been tried under it; expected zero_stage 0, 1 or 2"),
    ("loss: {path_length_batch_shrink: 5}", "loss.path_length_batch_shrink: 5 does not divide train.batch, which is 32"),
))
def test_names_what_does_not_go_together(tmp_path, text, said):
    assert complaint(tmp_path, BASE + text) == said


@pytest.mark.parametrize(("text", "said"), [
    pytest.param("model: {resolution: 32}", "images: is missing", id="images"),
    pytest.param("images: {path: digits}", "model: is missing", id="model"),
    pytest.param("images: {}\nmodel: {resolution: 32}", "images.path: is missing", id="path"),
    pytest.param("images: {path: digits}\nmodel: {}", "model.resolution: is missing", id="resolution"),
    pytest.param(BASE + "guidance: {teachers: [{mode: frozen}]}", "guidance.teachers.0.checkpoint: is missing", id="teacher"),
    pytest.param("images: digits\nmodel: {resolution: 32}", "images: expected keys and values, got 'digits'", id="path-alone"),
])
def test_names_what_is_missing(tmp_path, text, said):
    assert complaint(tmp_path, text) == said


@pytest.mark.parametrize(("text", "said"), claims(
    ("stages: []", "stages: expected the name of each stage with what it changes, got []"),
    ("stages:", "stages: expected the name of each stage with what it changes, got nothing"),
    ("stages: {}", "stages: expected the name of each stage with what it changes, got {}"),
    ("stages: {a: }", "stages.a: expected what this stage changes, or {} for nothing, got nothing"),
    ("stages: {a: {trian: {}}}", "stages.a: trian: there is no such key; did you mean train?"),
    ("stages: {a: {}, b: {train: {batch: x}}}", "stages.b: train.batch: expected integer, got 'x'"),
    ("stages: {a: {stage: b}}", "stage: is the name that `stages` gives; to run one stage alone, use --stage a"),
    ("stages: {student: {}, b: {start: 'stage:studnet'}}",
     "stages.b: start: 'stage:studnet' names no earlier stage of the file; did you mean student?"),
    ("stages: {a: {start: 'stage:b'}, b: {}}", "stages.a: start: 'stage:b' names no earlier stage of the file"),
    ("stages: {a: {start: 'stage:a'}}", "stages.a: start: 'stage:a' names no earlier stage of the file"),
    ("stages: {a: {}, b: {guidance: {teachers: [{checkpoint: x}, {checkpoint: 'stage:c'}]}}}",
     "stages.b: guidance.teachers.1.checkpoint: 'stage:c' names no earlier stage of the file; expected one of a"),
    ("start: stage:teacher", "start: 'stage:teacher' names no earlier stage of the file"),
))
def test_names_what_is_wrong_with_a_stage(tmp_path, text, said):
    assert complaint(tmp_path, BASE + text) == said


@pytest.mark.parametrize(("override", "said"), claims(
    ("train.batch", "'train.batch': expected an override of the form train.batch=16"),
    ("=16", "'=16': expected an override of the form train.batch=16"),
    ("train..batch=16", "'train..batch=16': expected an override of the form train.batch=16"),
    ("train.=16", "'train.=16': expected an override of the form train.batch=16"),
    ("train.batch =16", "'train.batch =16': expected an override of the form train.batch=16"),
    ("train.batch=[", "'train.batch=[': is not valid YAML: line 1, column 2: expected the node content, but found '<stream end>'"),
    ("train.batch=", "stages.teacher: train.batch: expected integer, got nothing"),
    ("trian.batch=4", "stages.teacher: trian: there is no such key; did you mean train?"),
    ("--train.batch=4", "stages.teacher: --train: there is no such key; did you mean train?"),
    ("train.batch.x=5", "train.batch.x: train.batch is 8, not a section"),
    ("guidance.teachers.2.mode=frozen", "stages.teacher: guidance.teachers.2.checkpoint: is missing"),
    ("guidance.teachers.3.mode=frozen", "guidance.teachers.3.mode: '3' is no position in a list of 2"),
    ("guidance.teachers.-1.mode=frozen", "guidance.teachers.-1.mode: '-1' is no position in a list of 2"),
    ("guidance.teachers.checkpoint=x", "guidance.teachers.checkpoint: 'checkpoint' is no position in a list of 2"),
    ("guidance.teachers.²=x", "guidance.teachers.²: '²' is no position in a list of 2"),
    ("stage=student", "stage: is the name that `stages` gives; to run one stage alone, use --stage teacher"),
    ("stages.student=5", "stages.student: expected an override of the form stages.NAME.train.batch=16"),
))
def test_names_what_is_wrong_with_an_override(tmp_path, override, said):
    assert complaint(tmp_path, BASE + STAGES, override) == said


@pytest.mark.parametrize(("text", "close"), [(BASE, ""), (BASE + STAGES, "; did you mean student?")], ids=["no-stages", "stages"])
def test_an_override_makes_no_new_stage(tmp_path, text, close):
    sentence = complaint(tmp_path, text, "stages.studnet.train.batch=4")
    assert sentence == f"stages.studnet.train.batch: {tmp_path / 'run.yaml'} has no stage studnet{close}"


@pytest.mark.parametrize(("text", "said"), [
    pytest.param("", "expected keys and values, such as `train:`, got nothing", id="empty"),
    pytest.param("# all commented out\n", "expected keys and values, such as `train:`, got nothing", id="comments"),
    pytest.param("- train", "expected keys and values, such as `train:`, got ['train']", id="list"),
    pytest.param("train", "expected keys and values, such as `train:`, got 'train'", id="word"),
    pytest.param("train: [", "is not valid YAML: line 1, column 9: expected the node content, but found '<stream end>'", id="unclosed"),
    pytest.param("a:\n\tb: 5", "is not valid YAML: line 2, column 1: found character '\\t' that cannot start any token", id="tab"),
    pytest.param(BASE + "train: {}\ntrain: {}", "is not valid YAML: line 4, column 1: the key train comes twice", id="key-twice"),
    pytest.param("stages: {a: {}, a: {}}", "is not valid YAML: line 1, column 17: the key a comes twice", id="stage-twice"),
    pytest.param("a: !!python/name:os.system x", "is not valid YAML: line 1, column 4: could not determine a constructor for the tag "
                 "'tag:yaml.org,2002:python/name:os.system'", id="code"),
])
def test_names_what_is_wrong_with_the_file(tmp_path, text, said):
    assert complaint(tmp_path, text) == said


@pytest.mark.parametrize("name", ["missing.yaml", "."], ids=["missing", "folder"])
def test_names_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(ConfigError) as error:
        configs.read(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: cannot be read: ")


def test_names_a_file_that_is_not_text(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="run.yaml: is not valid YAML: 'utf-8' codec can't decode"):
        configs.read(tmp_path / "run.yaml")


def test_every_complaint_begins_with_the_file(tmp_path):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, BASE + "trian: 5")
    assert str(error.value).startswith(f"{tmp_path / 'run.yaml'}: ")


# families

BIGGAN = "images: {path: digits}\nmodel: {family: biggan, resolution: 32, channels: 1, z_dim: 40, attention: 0}\n"


def test_each_family_has_the_defaults_of_its_paper(tmp_path):
    run, = read(tmp_path, BIGGAN)
    assert (run.loss.adversarial, run.loss.orthogonal_weight, run.train.ema_decay, run.train.ema_start, run.train.ema_kimg) == ("hinge", 0, 0.9999, 20000, None)
    adams = [(adam.lr, adam.beta1, adam.beta2, adam.eps) for adam in (run.optimizer.generator, run.optimizer.discriminator)]
    assert adams == [(1e-4, 0, 0.999, 1e-6), (4e-4, 0, 0.999, 1e-6)]
    assert (run.model.generator_ch, run.model.discriminator_ch, run.model.shared_dim, run.model.init, run.model.sn_eps) == (96, 96, 128, "orthogonal", 1e-6)
    assert (run.train.discriminator_steps, run.train.accumulate_generator, run.train.accumulate_discriminator, run.train.generator_batch) == (1, 1, 1, None)
    other, = read(tmp_path, BASE)
    assert other.model.family == "stylegan2" and other.loss.adversarial == "nonsaturating"


def test_biggans_recipes_are_those_of_the_paper():
    runs = {path.stem: configs.read(path) for path in SHIPPED if path.stem in ("biggan_c10", "biggan_i128")}
    recipes = {}
    for name, (student, guided) in runs.items():
        assert guided.model == student.model and (guided.start, guided.guidance.weight) == ("stage:student", 0.1)
        model, settings, adams = student.model, student.train, (student.optimizer.generator, student.optimizer.discriminator)
        recipes[name] = {
            "batch": (settings.generator_images, settings.accumulate_generator, settings.batch, settings.accumulate_discriminator),
            "D steps": settings.discriminator_steps, "lr": tuple(adam.lr for adam in adams),
            "Adam": {(adam.beta1, adam.beta2, adam.eps) for adam in adams}, "average": (settings.ema_decay, settings.ema_start),
            "model": (model.resolution, model.z_dim, model.hier, model.shared_dim, model.attention, model.init, model.sn_eps),
            "ch": (model.generator_ch, model.discriminator_ch), "flips": student.images.mirror,
        }
    assert recipes == {
        "biggan_i128": {"batch": (2048, 8, 2048, 8), "D steps": 1, "lr": (1e-4, 4e-4), "Adam": {(0, 0.999, 1e-6)}, "average": (0.9999, 20000),
                        "model": (128, 120, True, 128, 64, "orthogonal", 1e-6), "ch": (48, 96), "flips": False},
        "biggan_c10": {"batch": (100, 1, 200, 2), "D steps": 4, "lr": (2e-4, 2e-4), "Adam": {(0, 0.999, 1e-8)}, "average": (0.9999, 1000),
                       "model": (32, 128, False, 0, 0, "normal", 1e-8), "ch": (48, 48), "flips": False},
    }


def test_what_a_file_leaves_out_of_an_optimizer_is_the_familys(tmp_path):
    run, = read(tmp_path, BIGGAN, "optimizer.discriminator.lr=1e-3")
    assert (run.optimizer.discriminator.lr, run.optimizer.discriminator.beta2, run.optimizer.discriminator.eps) == (1e-3, 0.999, 1e-6)


@pytest.mark.parametrize(("text", "said"), claims(
    ("loss: {style_mixing: 0.9}", "loss.style_mixing: there is no such key in model.family biggan; it is one of stylegan2's"),
    ("loss: {path_length_interval: 4}", "loss.path_length_interval: there is no such key in model.family biggan; it is one of stylegan2's"),
    ("loss: {orthogonal_wieght: 1}", "loss.orthogonal_wieght: there is no such key; did you mean orthogonal_weight?"),
    ("loss: {adversarial: nonsaturating}", "loss.adversarial: expected 'hinge', got 'nonsaturating'"),
    ("train: {disciminator_steps: 4}", "train.disciminator_steps: there is no such key; did you mean discriminator_steps?"),
))
def test_biggan_knows_its_own_keys_alone(tmp_path, text, said):
    assert complaint(tmp_path, BIGGAN + text) == said


@pytest.mark.parametrize(("model", "said"), claims(
    ("{family: biggan, resolution: 32, mbstd_group: 4}",
     "model.mbstd_group: there is no such key in model.family biggan; it is one of stylegan2's"),
    ("{resolution: 32, hier: true}", "model.hier: there is no such key in model.family stylegan2; it is one of biggan's"),
    ("{family: biggan, resolution: 48}", "model.resolution: expected one of 32, 64, 128, 256, got 48"),
    ("{family: biggan, resolution: 128, z_dim: 128}",
     "model.z_dim: 128 cannot be cut into 6 equal chunks, which hier hands out at 128x128; use a multiple of 6"),
    ("{family: biggan, resolution: 128, shared_dim: 0}",
     "model.shared_dim: 0 leaves hier nothing to join the chunks of z to; expected at least 1, or hier: false"),
    ("{family: biggan, resolution: 64}",
     "model.attention: expected 0 for none, or one of 8, 16, 32, which both networks have, got 64"),
    ("{family: biggan, resolution: 32, init: xavier}", "model.init: expected 'orthogonal' or 'normal', got 'xavier'"),
    ("{family: [biggan], resolution: 32}", "model.family: expected 'stylegan2' or 'biggan', got ['biggan']"),
    ("{family: , resolution: 32}", "model.family: expected 'stylegan2' or 'biggan', got nothing"),
    ("{famliy: biggan, resolution: 32}", "model.famliy: there is no such key; did you mean family?"),
))
def test_names_what_a_family_cannot_be(tmp_path, model, said):
    assert complaint(tmp_path, f"images: {{path: digits}}\nmodel: {model}") == said


@pytest.mark.parametrize("R", [32, 64, 128, 256])
def test_what_biggan_may_be_its_networks_can_be(tmp_path, R):
    """The schema knows the networks' blocks without importing them."""
    for attention in [2**i for i in range(2, 9)]:
        try:
            run, = read(tmp_path, f"images: {{path: digits}}\nmodel: {{family: biggan, resolution: {R}, z_dim: 420, attention: {attention}, "
                                  "generator_ch: 8, discriminator_ch: 8, init: normal}")
        except ConfigError:
            run = None
        arguments = {"c_dim": 2, "img_resolution": R, "ch": 8, "attention": attention, "init": "normal"}
        try:
            with torch.device("meta"):
                networks = biggan.Generator(z_dim=420, **arguments), biggan.Discriminator(**arguments)
        except ValueError:
            networks = None
        assert (run is None) == (networks is None), attention


@pytest.mark.parametrize(("base", "train", "said"), [
    pytest.param(BASE, "ema_decay: 0.999", "train.ema_decay: 0.999 beside ema_kimg: 10; expected one of the two, and null for the other", id="both"),
    pytest.param(BASE, "ema_kimg: null", "train.ema_decay: nothing beside ema_kimg: nothing; expected one of the two, and null for the other", id="neither"),
    pytest.param(BIGGAN, "ema_kimg: 2.5", "train.ema_decay: 0.9999 beside ema_kimg: 2.5; expected one of the two, and null for the other", id="biggan"),
    pytest.param(BASE, "ema_start: 5", "train.ema_start: 5 needs ema_decay; ema_kimg averages from the start: set ema_start to 0", id="start"),
    pytest.param(BIGGAN, "ema_rampup: 0.05", "train.ema_rampup: 0.05 needs ema_kimg; with ema_decay, ema_start says when averaging starts", id="rampup"),
])
def test_the_average_goes_by_images_or_by_steps(tmp_path, base, train, said):
    assert complaint(tmp_path, base + f"train: {{{train}}}") == said


# the ranks

@pytest.mark.parametrize(("ranks", "overrides", "said"), [
    pytest.param(3, [], "train.batch: 32 cannot be shared by 3 rank(s); use a multiple of 3", id="ranks"),
    pytest.param(16, [], "train.batch: 32 on 16 rank(s) is 2 each, which is no multiple of model.mbstd_group, 4; use a multiple of 64", id="group"),
    pytest.param(1, ["train.batch=6"], "train.batch: 6 on 1 rank(s) is 6 each, which is no multiple of model.mbstd_group, 4; use a multiple of 4",
                 id="group-on-one"),
    pytest.param(8, ["loss.path_length_batch_shrink=8"], "loss.path_length_batch_shrink: 32 / 8 images cannot be shared by 8 rank(s)", id="path-length"),
])
def test_refuses_a_batch_that_the_ranks_cannot_share(tmp_path, ranks, overrides, said):
    run, = read(tmp_path, BASE, *overrides)
    with pytest.raises(ConfigError) as error:
        run.check_world_size(ranks)
    assert str(error.value) == said


@pytest.mark.parametrize(("base", "ranks", "overrides", "said"), [
    pytest.param(BIGGAN, 2, ["train.accumulate_discriminator=3"],
                 "train.batch: 32 cannot be shared by 2 rank(s) in 3 passes (train.accumulate_discriminator); use a multiple of 6", id="passes"),
    pytest.param(BIGGAN, 1, ["train.generator_batch=10", "train.accumulate_generator=4"],
                 "train.generator_batch: 10 cannot be shared by 1 rank(s) in 4 passes (train.accumulate_generator); use a multiple of 4", id="generator"),
    pytest.param(BASE, 2, ["train.accumulate_generator=8"],
                 "train.batch: 32 on 2 rank(s) in 8 passes (train.accumulate_generator) is 2 each, which is no multiple of model.mbstd_group, 4; "
                 "use a multiple of 64", id="group"),
    pytest.param(BASE, 2, ["train.accumulate_generator=4", "loss.path_length_batch_shrink=8"],
                 "loss.path_length_batch_shrink: 32 / 8 images cannot be shared by 2 rank(s) in 4 passes", id="path-length"),
])
def test_refuses_passes_that_the_images_cannot_be_cut_into(tmp_path, base, ranks, overrides, said):
    run, = read(tmp_path, base, *overrides)
    with pytest.raises(ConfigError) as error:
        run.check_world_size(ranks)
    assert str(error.value) == said


def test_samples_that_stand_alone_are_shared_in_any_number(tmp_path):
    read(tmp_path, BIGGAN, "train.batch=6", "train.accumulate_discriminator=3", "train.generator_batch=2")[0].check_world_size(2)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_allows_a_batch_that_the_ranks_can_share(tmp_path, ranks):
    read(tmp_path, BASE)[0].check_world_size(ranks)


def test_the_batch_of_path_length_matters_only_where_there_is_one(tmp_path):
    run, = read(tmp_path, BASE, "loss.path_length_batch_shrink=8", "loss.path_length_interval=0")
    run.check_world_size(8)
    assert read(tmp_path, BASE, "loss.path_length_batch_shrink=5", "loss.path_length_interval=0")


# what is written

def test_the_resolved_config_says_everything(tmp_path):
    run, = read(tmp_path, BASE)
    written = yaml.safe_load(configs.to_yaml(run))
    assert list(written) == list(type(run).model_fields)
    assert written["train"]["kimg"] == 25000 and written["model"]["conv_clamp"] == 256


def test_from_dict_names_its_source():
    with pytest.raises(ConfigError, match="^the header: images: is missing$"):
        configs.from_dict({"model": {"resolution": 32}}, "the header")


@pytest.mark.parametrize("key, get", [
    ("images.path", lambda run: run.images.path),
    ("outdir", lambda run: run.outdir),
    ("start", lambda run: run.start),
    ("guidance.teachers.0.checkpoint", lambda run: run.guidance.teachers[0].checkpoint),
    ("metrics.cache", lambda run: run.metrics.cache),
    ("metrics.detector", lambda run: run.metrics.detector),
])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, key, get):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for written, meant in (("~/a", f"{tmp_path}/me/a"), ("./~/a", "./~/a"), ("a~b", "a~b"), ("~nobody-of-this-name/a", "~nobody-of-this-name/a")):
        assert get(read(tmp_path, BASE, f"{key}={written}")[0]) == meant


def test_teachers_are_added_one_behind_the_other(tmp_path):
    run = read(tmp_path, BASE, "guidance.teachers.0.checkpoint=a", "guidance.teachers.1.checkpoint=b", "guidance.teachers.1.mode=updated")[0]
    assert [(teacher.checkpoint, teacher.mode) for teacher in run.guidance.teachers] == [("a", "frozen"), ("b", "updated")]


@pytest.mark.parametrize(("text", "said"), claims(
    ("augment: 1", "augment: there is no such key; this fastdgl augments images by flips alone, with images.mirror"),
    ("aug: ada", "aug: there is no such key; this fastdgl augments images by flips alone, with images.mirror"),
    ("gamma: 10", "gamma: there is no such key; did you mean loss.r1_gamma?"),
    ("train: {batch-gpu: 4}", "train.batch-gpu: there is no such key; did you mean train.accumulate_generator or train.accumulate_discriminator?"),
    ("gpus: 8", "gpus: there is no such key; the launcher says how many GPUs there are: deepspeed --num_gpus 8 fastdgl/train.py ..."),
    ("resume: a.pkl", "resume: there is no such key; did you mean start?"),
    ("snap: 50", "snap: there is no such key; did you mean train.snapshot_ticks?"),
    ("mirror: true", "mirror: there is no such key; did you mean images.mirror?"),
))
def test_the_words_of_other_programs_lead_to_our_keys(tmp_path, text, said):
    assert complaint(tmp_path, BASE + text) == said


@pytest.mark.parametrize(("changes", "said"), [
    ({"generator_channels": [8, 8]}, "generator_channels: [8, 8] has 2 widths; expected 4, for 4, 8, 16, 32"),
    ({"discriminator_channels": [8, 8, 0, 8]}, "model.discriminator_channels.2: expected a number greater than 0, got 0"),
    ({"generator_channels": [8, 8, 7, 8], "generator_fraction": 0.5}, "generator_fraction: 0.5 of the 7 channels at 16x16 is 3.5"),
    ({"generator_channels": 8}, "generator_channels: [8] has 1 widths; expected 4"),
])
def test_widths_by_a_list_are_one_for_each_resolution(changes, said):
    with pytest.raises(ConfigError) as error:
        configs.from_dict({"images": {"path": "digits"}, "model": {"resolution": 32} | changes}, "test")
    assert said in str(error.value)
