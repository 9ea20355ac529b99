"""Random inputs do not depend on how many ranks draw them, and a seed means the same z everywhere."""

import numpy as np
import pytest
import torch

from fastdgl.latents import Latents, seeded_z

CPU = torch.device("cpu")
LABELS = torch.eye(3)[[0, 0, 0, 0, 0, 0, 1, 1, 1, 2]]


def latents(seed=0, rank=0, ranks=1):
    return Latents(seed, LABELS, CPU, rank, ranks)


def interleaved(shares):
    """Sample i of the whole is sample i // ranks of rank i mod ranks."""
    return torch.stack(shares, dim=1).flatten(0, 1)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("size", [[8, 5], [8, 1, 4, 4], [8, 2, 3]], ids=str)
def test_shares_of_normal_numbers_interleave_to_the_whole(ranks, size):
    N, *rest = size
    whole = latents().normal(size)
    shares = [latents(rank=rank, ranks=ranks).normal([N // ranks, *rest]) for rank in range(ranks)]
    assert torch.equal(interleaved(shares), whole)


@pytest.mark.parametrize("ranks", [2, 4])
def test_shares_of_classes_interleave_to_the_whole(ranks):
    shares = [latents(rank=rank, ranks=ranks).classes(16 // ranks) for rank in range(ranks)]
    assert torch.equal(interleaved(shares), latents().classes(16))


@pytest.mark.parametrize("ranks", [1, 2])
def test_classes_kept_by_index_are_drawn_as_their_vectors_are(ranks):
    by_index = Latents(0, LABELS.argmax(dim=1), CPU, ranks - 1, ranks, c_dim=4).classes(16)
    assert by_index.dtype == torch.float32
    assert torch.equal(by_index, torch.nn.functional.pad(latents(rank=ranks - 1, ranks=ranks).classes(16), (0, 1)))


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sequence_of_draws_is_shared_too(ranks):
    def sequence(source, N):
        return [source.classes(N), source.normal([N, 3]), source.mixing_cutoff(8, 0.5), source.normal([N, 1, 4, 4]), source.normal([N, 3])]

    whole = sequence(latents(), 8)
    shares = zip(*[sequence(latents(rank=rank, ranks=ranks), 8 // ranks) for rank in range(ranks)])
    for expected, got in zip(whole, shares):
        if isinstance(expected, int):
            assert set(got) == {expected}
        else:
            assert torch.equal(interleaved(list(got)), expected)


def test_numbers_are_standard_normal_and_new_each_time():
    source = latents()
    first, second = source.normal([10_000]), source.normal([10_000])
    # the mean and variance of n numbers err by 1/sqrt(n) and sqrt(2/n); five of those is once in a million
    assert first.mean().abs() < 5 / 100 and (first.var() - 1).abs() < 5 * 2**0.5 / 100
    assert not torch.equal(first, second)


def test_another_seed_gives_other_numbers():
    assert not torch.equal(latents(seed=0).normal([8]), latents(seed=1).normal([8]))


def test_classes_come_with_the_frequency_of_the_training_set():
    classes = latents().classes(10_000)
    assert classes.sum(dim=1).eq(1).all()
    # the frequency of n draws errs by at most 1 / (2 sqrt(n))
    torch.testing.assert_close(classes.mean(dim=0), torch.tensor([0.6, 0.3, 0.1]), atol=5 / 200, rtol=0)


def test_an_unlabelled_set_gives_empty_labels():
    assert Latents(0, torch.zeros(10, 0), CPU).classes(4).shape == (4, 0)


def test_mixing_happens_at_every_layer_but_the_first():
    source = latents()
    assert {source.mixing_cutoff(8, 1) for _ in range(500)} == set(range(1, 8))


@pytest.mark.parametrize("probability", [0, 0.9])
def test_mixing_happens_with_its_probability(probability):
    source = latents()
    mixed = sum(source.mixing_cutoff(8, probability) < 8 for _ in range(10_000)) / 10_000
    # the frequency of n draws errs by at most 1 / (2 sqrt(n)), and not at all where it never happens
    assert abs(mixed - probability) <= (5 / 200 if probability else 0)


def test_the_cutoff_takes_as_many_draws_mixed_or_not():
    mixed, plain = latents(), latents()
    for _ in range(3):
        mixed.mixing_cutoff(8, 1)
        plain.mixing_cutoff(8, 0)
    assert [mixed.mixing_cutoff(8, 1) for _ in range(9)] == [plain.mixing_cutoff(8, 1) for _ in range(9)]


def test_its_state_continues_the_stream():
    source, later = latents(), latents(seed=7)
    source.normal([5, 3]), source.classes(3), source.mixing_cutoff(8, 0.9)
    later.load_state_dict(source.state_dict())
    assert torch.equal(source.normal([4, 2]), later.normal([4, 2]))
    assert torch.equal(source.classes(9), later.classes(9))
    assert [source.mixing_cutoff(18, 0.5) for _ in range(9)] == [later.mixing_cutoff(18, 0.5) for _ in range(9)]


def test_a_seed_is_the_z_of_nvidias_tools():
    z = seeded_z(85, 512)
    assert z.shape == (1, 512) and z.dtype == torch.float32
    assert torch.equal(z, torch.from_numpy(np.random.RandomState(85).randn(1, 512)).float())
    # numpy promises this stream for good
    assert seeded_z(0, 3)[0].tolist() == pytest.approx([1.764052345967664, 0.4001572083672233, 0.9787379841057392])


@pytest.mark.parametrize("threshold", [2, 1, 0.5, 0.04])
def test_truncation_draws_anew_what_is_beyond_the_threshold_and_nothing_else(threshold):
    plain, truncated = seeded_z(3, 1000), seeded_z(3, 1000, threshold)
    inside = plain.abs() <= threshold
    assert truncated.abs().max() <= threshold
    assert torch.equal(truncated[inside], plain[inside]) and not inside.all()
    assert torch.equal(truncated, seeded_z(3, 1000, threshold))
    # the new numbers are spread over the whole interval, not heaped at its ends: of the truncated normal distribution
    dense = torch.distributions.Normal(0, 1)
    quarter = (dense.cdf(torch.tensor(threshold / 2)) - 0.5) / (dense.cdf(torch.tensor(float(threshold))) - 0.5)
    assert abs((truncated[~inside].abs() < threshold / 2).float().mean() - quarter) < 5 * 0.5 / float((~inside).sum()) ** 0.5


def test_new_numbers_are_the_next_of_the_same_stream_in_order():
    stream = np.random.RandomState(1).randn(8)
    # 1.62 -0.61 -0.53 -1.07 | 0.87 -2.30 | 1.74 | -0.76
    assert seeded_z(1, 4, 1.0)[0].tolist() == pytest.approx([stream[4], stream[1], stream[2], stream[7]])


@pytest.mark.parametrize("threshold", [0, -1, 0.001, float("nan")])
def test_a_threshold_that_takes_too_long_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold of z must be at least 0.01, got"):
        seeded_z(0, 4, threshold)
