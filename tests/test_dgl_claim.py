"""The experiment on DGL's claim: that its arms differ by nothing else, that its numbers are what the page says, that it goes on where it was."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_networks import STYLEGAN2, save
from torch import nn

from bench.dgl_claim import estimates, page
from bench.dgl_claim.arms import ARMS, FAMILIES, ArmError, random_teacher, run_folder, snapshots, stage, trained
from bench.dgl_claim.compute import FlopCounter, flops_per_image
from fastdgl import checkpoints, config as configs
from fastdgl.engines import end_run, start_run
from fastdgl.images import ImageDataset
from fastdgl.models.cost import macs

FIDS = {"A0": [100, 104, 108], "A1": [80, 82, 90], "A2": [70, 70, 71], "A3": [90, 91, 92], "A8": [60, 61, 62]}


def evaluations(fid: float) -> list[dict]:
    """Seven, of which the last five have the mean fid + 1 and the last is fid."""
    return [{"kimg": 10.0 + i, "fid": value, "kid": fid / 50, "precision": 0.8, "recall": 0.25}
            for i, value in enumerate([900, 800, fid + 2, fid + 1, fid + 1, fid + 1, fid])]


def result(fids: dict[str, list[float]]) -> dict:
    student = {"kimg": 9.0, "fid": 150.0, "kid": 3.0, "precision": 0.7, "recall": 0.1}
    seeds = [{"student": student, "arms": {arm: {"flops_per_image": 2e6 if arm == "A1" else 1e6, "kimg": 7.0, "evaluations": evaluations(values[i])}
                                           for arm, values in fids.items()}} for i in range(3)]
    return {"date": "2000-01-01", "machine": "an abacus", "torch": "9.9", "family": "stylegan2", "teacher": student | {"fid": 20.0}, "seeds": seeds}


@pytest.mark.parametrize("family", FAMILIES)
def test_arms_differ_only_by_what_the_generator_learns_from(family):
    plain = stage(family, "A0")
    assert plain.guidance.teachers == [] and plain.start == "stage:student"
    for arm in ("A1", "A2", "A3"):
        config = stage(family, arm)
        assert config.model_copy(update={"guidance": plain.guidance, "stage": "A0"}) == plain
        assert config.guidance.weight == 0.1 and [teacher.mode for teacher in config.guidance.teachers] == ["frozen" if arm == "A1" else "updated"]


@pytest.mark.parametrize("family", FAMILIES)
def test_students_are_narrower_than_their_teacher_and_arms_end_with_whole_steps(family):
    teacher, student = stage(family, "teacher"), stage(family, "student")
    key = {"stylegan2": "generator_fraction", "biggan": "generator_ch"}[family]
    assert getattr(student.model, key) <= getattr(teacher.model, key) / 2
    images = student.train.batch * student.train.discriminator_steps
    for name in ("student", *{arm.stage for arm in ARMS}):
        assert round(stage(family, name).train.kimg * 1000) % images == 0


def test_estimates_are_paired_by_seed_on_log_fid():
    # seeds differ by a factor of 4, arms of one seed by about a fifth: unpaired, the interval would hold 0
    factors = [0.80, 0.82, 0.78]
    found = estimates.paired(result(FIDS | {"A0": [50, 100, 200], "A1": [50 * factors[0], 100 * factors[1], 200 * factors[2]]}), "A1", "A0", 1)
    logs = [math.log(factor) for factor in factors]
    mean = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((log - mean) ** 2 for log in logs) / 2 / 3)
    assert [found.ratio, found.low, found.high] == pytest.approx([math.exp(mean) - 1, math.exp(mean - half) - 1, math.exp(mean + half) - 1], rel=1e-6)
    assert found.verdict == "helps" and found.seeds == 3


def test_a_window_takes_the_last_evaluations_of_both_arms():
    found = result(FIDS)
    for seed in found["seeds"]:
        seed["arms"]["A1"]["evaluations"][-2]["fid"] = 1.0
        seed["arms"]["A8"]["evaluations"] = seed["arms"]["A8"]["evaluations"][-5:]
    at_end, last_five = (estimates.paired(found, "A1", "A0", last) for last in (1, 5))
    # one of five evaluations is about a hundredth, its log thus lower by log(83), a fifth of which is in the mean
    assert last_five.ratio < at_end.ratio * 2
    # A8 has five evaluations, where A1 has seven
    assert estimates.paired(found, "A1", "A8", 5) is not None and estimates.paired(found, "A1", "A8", None) is None
    assert estimates.paired(found, "A8", "A8", 6) is None


@pytest.mark.parametrize("low, high, verdict", [(-0.3, -0.001, "helps"), (0.01, 0.4, "hurts"), (-0.049, 0.049, "no effect of the published size"),
                                                (-0.051, 0.02, "undecided"), (-0.02, 0.051, "undecided"), (-0.04, -0.01, "helps")])
def test_the_verdict_follows_from_the_interval(low, high, verdict):
    assert estimates.Estimate("A1", "A0", (low + high) / 2, low, high, 3).verdict == verdict


def test_windows_that_disagree_are_undecided():
    helps, hurts = (estimates.Estimate("A1", "A0", sign * 0.2, sign * 0.2 - 0.1, sign * 0.2 + 0.1, 3) for sign in (-1, 1))
    assert estimates.verdict([helps, helps]) == "helps" and estimates.verdict([helps, hurts]) == "undecided"


def test_nothing_is_estimated_from_one_seed_or_an_fid_of_zero():
    found = result(FIDS)
    with pytest.raises(estimates.TooFewError, match="1 seed.s. of A1 and A0; expected at least 2"):
        estimates.paired(found | {"seeds": found["seeds"][:1]}, "A1", "A0", 1)
    for broken in (0.0, -1.0, math.nan):
        found["seeds"][1]["arms"]["A0"]["evaluations"][-1]["fid"] = broken
        with pytest.raises(estimates.TooFewError, match="A0 has an FID of"):
            estimates.paired(found, "A1", "A0", 1)


@pytest.mark.parametrize("p, df, value", [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.95, 7, 1.8946), (0.8, 9, 0.8834), (0.975, 120, 1.9799)])
def test_quantiles_of_students_t_are_those_of_the_tables(p, df, value):
    assert estimates.t_quantile(p, df) == pytest.approx(value, abs=5e-5)


def test_the_spread_leaves_out_what_seeds_and_arms_add():
    def logs(noise: float) -> dict:
        # of arm a and seed s: a seed's level, an arm's effect, and noise whose rows and columns sum to 0
        return {arm: [100 * math.exp(0.7 * s + 0.2 * a + noise * (1 if (a + s) % 2 else -1)) for s in range(2)] for a, arm in enumerate(estimates.EQUAL_IMAGES)} | {"A8": [1, 1]}

    def two_seeds(fids: dict) -> dict:
        return {"seeds": result({arm: values + values[:1] for arm, values in fids.items()})["seeds"][:2]}

    assert estimates.spread_of_differences(two_seeds(logs(0)), 1) == pytest.approx(0, abs=1e-12)
    # eight squares of 0.1 on three degrees of freedom, twice
    assert estimates.spread_of_differences(two_seeds(logs(0.1)), 1) == pytest.approx(math.sqrt(2 * 8 * 0.01 / 3))


def test_seeds_needed_are_the_fewest_with_the_power():
    # n = 10: (2.2622 + 0.8834)^2 0.05^2 / log(0.95)^2 = 9.4; n = 9: (2.3060 + 0.8889)^2 ... = 9.7
    assert estimates.seeds_needed(0.05) == 10 and estimates.seeds_needed(0.0) == 2
    assert estimates.seeds_needed(0.1, effect=0.5) < estimates.seeds_needed(0.1, effect=0.1)


def test_the_page_has_the_numbers_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "DOCS", tmp_path)
    (tmp_path / "stylegan2.json").write_text(json.dumps(result(FIDS)))
    page.write(tmp_path)
    text = (tmp_path / "claim.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 84.00 ± 5.29 | 85.00 ± 5.29 | 1.68 ± 0.11 | 0.800 ± 0.000 | 0.250 ± 0.000 |" in rows["A1"] and "| 2.00 |" in rows["A1"]
    assert "| 104.00 ± 4.00 | 105.00 ± 4.00 |" in rows["A0"]
    assert "| 20.00 | 20.00 |" in rows["teacher"]
    a1 = estimates.paired(result(FIDS), "A1", "A0", 5)
    assert f"{page.quoted(a1)}, {a1.verdict}" in rows["A1 against A0"]
    assert "an abacus" in text and "claim_stylegan2.svg" in text
    svg = (tmp_path / "claim_stylegan2.svg").read_text(encoding="utf-8")
    # a thin line a seed and a thick one, of each of the four arms with a curve
    assert svg.count("<polyline") == 16


def test_the_page_in_docs_is_that_of_the_results_in_the_repository():
    results = page.ROOT / "bench" / "results" / "dgl_claim"
    found = [json.loads((results / f"{family}.json").read_text(encoding="utf-8")) for family in FAMILIES]
    assert (page.ROOT / "docs" / "claim.md").read_text(encoding="utf-8") == "\n".join(page.page(found)) + "\n"
    for family in found:
        assert (page.ROOT / "docs" / f"claim_{family['family']}.svg").read_text(encoding="utf-8") == page.curves(family)


def test_the_readme_quotes_the_results_as_they_are():
    readme = (page.ROOT / "README.md").read_text(encoding="utf-8")
    found = [json.loads((page.ROOT / "bench" / "results" / "dgl_claim" / f"{family}.json").read_text(encoding="utf-8")) for family in FAMILIES]
    for arm in ARMS:
        numbers = [page.spread(page.final_fids(result, arm.name), 1) for result in found]
        assert f"| {' | '.join(numbers)} |" in readme, arm.name


def test_the_documents_quote_the_estimates_as_they_are():
    readme, dgl = ((page.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/dgl.md"))
    found = [json.loads((page.ROOT / "bench" / "results" / "dgl_claim" / f"{family}.json").read_text(encoding="utf-8")) for family in FAMILIES]
    for when, last in estimates.WINDOWS.items():
        numbers = [page.quoted(estimates.paired(result, "A1", "A0", last)) for result in found]
        assert f"| {when} | {' | '.join(numbers)} |" in readme
        assert when != "last five" or all(number in dgl for number in numbers)
    needed = [estimates.seeds_needed(estimates.spread_of_differences(result, 5)) for result in found]
    assert f"about {needed[0]} seeds of StyleGAN2 and {needed[1]} of BigGAN" in readme
    verdicts = {estimates.verdict([estimates.paired(result, "A1", "A0", last) for last in estimates.WINDOWS.values()]) for result in found}
    assert verdicts == {"undecided"} and "**Undecided.**" in readme and "**undecided**" in dgl


def test_a_finished_run_is_found_again_and_an_unfinished_one_goes_on(tmp_path, monkeypatch):
    calls = []

    class Done:
        returncode = 0

    monkeypatch.setattr("bench.dgl_claim.arms.subprocess.run", lambda command, **_: calls.append(command[2:]) or Done())
    config = stage("stylegan2", "student")
    folder = tmp_path / f"00000-{config.description}"
    trained("stylegan2", "student", tmp_path, ["seed=1"])
    assert calls.pop()[-2:] == [f"outdir={tmp_path}", "seed=1"]
    # stopped before its first checkpoint: from the start
    folder.mkdir()
    trained("stylegan2", "student", tmp_path, ["seed=1"])
    assert calls.pop()[0] == "--config" and not folder.exists()
    # with a checkpoint: on from it
    (folder / checkpoints.CHECKPOINTS / "step-0000000000032000").mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "saved_checkpoints", lambda root: sorted(root.iterdir()))
    trained("stylegan2", "student", tmp_path)
    assert calls.pop()[:2] == ["--resume", str(folder)]
    # at its end
    monkeypatch.setattr("bench.dgl_claim.arms.snapshots", lambda folder: [SimpleNamespace(seen=48_000)])
    assert trained("stylegan2", "student", tmp_path) == folder == run_folder(tmp_path, config) and not calls
    # longer
    trained("stylegan2", "student", tmp_path, kimg=50)
    assert calls.pop() == ["--resume", str(folder), "train.kimg=50"]


def test_a_run_that_fails_says_where_its_output_is(tmp_path, monkeypatch):
    class Failed:
        returncode = 3

    monkeypatch.setattr("bench.dgl_claim.arms.subprocess.run", lambda command, **_: Failed())
    with pytest.raises(ArmError, match=f"failed with exit code 3; its output is in {tmp_path / 'student.log'}"):
        trained("biggan", "student", tmp_path)


def test_the_random_teacher_differs_in_its_weights_alone(tmp_path):
    save(tmp_path / "teacher" / "network-snapshot-000001.safetensors", STYLEGAN2, 0, None)
    teacher, = snapshots(tmp_path / "teacher")
    random = checkpoints.open_snapshot(random_teacher(teacher.path, 1, tmp_path / "random.safetensors"))
    assert random.arguments == teacher.arguments and random.family == teacher.family
    learned, drawn = teacher.state_dict("D"), random.state_dict("D")
    assert learned.keys() == drawn.keys() and not any(torch.equal(learned[key], drawn[key]) for key in learned if key.endswith("weight"))
    random.network("D")


def test_flops_are_those_of_the_layers_to_second_order():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    with FlopCounter() as counter:
        gradient, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    once = 2 * 3 * 5 * 7
    assert counter.total == 2 * once
    with FlopCounter() as counter:
        gradient.square().sum().backward()
    assert counter.total >= 3 * once


def test_a_frozen_teacher_costs_its_discriminator_forwards_and_back_to_the_images(tmp_path):
    teacher = tmp_path / "teacher" / "network-snapshot-000001.safetensors"
    save(teacher, configs.to_dict(stage("stylegan2", "teacher"))["model"], 10, None)
    D = checkpoints.open_snapshot(teacher).network("D")
    once = 2 * macs(D, torch.empty(1, 1, 32, 32), torch.empty(1, 10))
    dataset, run = ImageDataset("digits", labels=True), start_run()
    try:
        plain, guided = (flops_per_image(stage("stylegan2", arm, [f"stages.{arm}.start=null", *overrides]), dataset, run)
                         for arm, overrides in (("A0", []), ("A1", [f"stages.A1.guidance.teachers.0.checkpoint={teacher}"])))
    finally:
        end_run()
    # what counts layers leaves out the filters between them
    assert 2 * once <= guided - plain < 2.5 * once
