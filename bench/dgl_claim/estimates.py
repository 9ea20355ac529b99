"""How much lower an arm's FID is than another's, with an interval: paired by seed, on log FID, from the raw results.

Arms of one seed share their start, their images and their random inputs, so that their difference varies less than either FID.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# the last evaluations of each seed that count; None for all
WINDOWS: dict[str, int | None] = {"at the end": 1, "last five": 5, "all evaluations": None}
# the claim's two, at equal computation, and the same of the other arms
COMPARED = (("A1", "A0"), ("A1", "A3"), ("A1", "A8"), ("A2", "A0"), ("A2", "A3"), ("A2", "A1"), ("A3", "A0"))
# arms that see the same images, by which the spread of a difference is estimated
EQUAL_IMAGES = ("A0", "A1", "A2", "A3")
# the published gain of guidance: FID 2.92 against 3.07 (docs/published.md)
PUBLISHED = 0.05
LEVEL, POWER = 0.95, 0.80

HELPS, HURTS, NO_EFFECT, UNDECIDED = "helps", "hurts", "no effect of the published size", "undecided"


class TooFewError(ValueError):
    """Results from which nothing can be estimated, in one sentence."""


@dataclass(frozen=True)
class Estimate:
    """A ratio of FIDs minus 1, so that -0.05 is 5 % lower, with its interval.

    low, high: Of the two-sided 95 % t-interval, not corrected for several comparisons.
    """

    first: str
    second: str
    ratio: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`helps` or `hurts` where the interval is below or above 0, `no effect of the published size` where it is inside ±5 %, else `undecided`."""
        if self.high < 0:
            return HELPS
        if self.low > 0:
            return HURTS
        return NO_EFFECT if -PUBLISHED < self.low and self.high < PUBLISHED else UNDECIDED


def paired(result: Mapping, first: str, second: str, last: int | None) -> Estimate | None:
    """Return the estimate of log FID(first) - log FID(second), paired by seed; None where the arms do not have as many evaluations.

        d_s = mean_e log FID(first, s, e) - mean_e log FID(second, s, e);   mean(d) ± t(0.975, n - 1) sd(d) / sqrt(n)

    Args:
        result: One family's, as in bench/results/dgl_claim.
        last: The last so many evaluations of each seed; None for all of them.

    Raises:
        TooFewError: There are fewer than two seeds, or an FID is not positive.
    """
    mine, theirs = log_fids(result, first, last), log_fids(result, second, last)
    if mine is None or theirs is None or len(mine[0]) != len(theirs[0]):
        return None
    differences = [statistics.fmean(a) - statistics.fmean(b) for a, b in zip(mine, theirs, strict=True)]
    n = len(differences)
    if n < 2:
        raise TooFewError(f"{n} seed(s) of {first} and {second}; expected at least 2, for an interval: run more, by --seeds")
    mean = statistics.fmean(differences)
    half = t_quantile((1 + LEVEL) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Estimate(first, second, math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half), n)


def log_fids(result: Mapping, arm: str, last: int | None) -> list[list[float]] | None:
    """Return log FID of each evaluation of each seed, `[seeds][evaluations]`; None where a seed has fewer than `last`."""
    logs = []
    for seed in result["seeds"]:
        evaluations = seed["arms"][arm]["evaluations"][-(last or 0):]
        if len(evaluations) < (last or 1):
            return None
        for evaluation in evaluations:
            if not evaluation["fid"] > 0:
                raise TooFewError(f"{arm} has an FID of {evaluation['fid']}; expected a positive number: evaluate it again")
        logs.append([math.log(evaluation["fid"]) for evaluation in evaluations])
    return logs


def spread_of_differences(result: Mapping, last: int | None) -> float:
    """Return the standard deviation of a difference of two arms' log FID, from what seeds and arms leave over in all four arms.

        sqrt(2 sum_sa (x_sa - x_s. - x_.a + x_..)^2 / ((seeds - 1)(arms - 1)))
    """
    x = [[statistics.fmean(log) for log in log_fids(result, arm, last)] for arm in EQUAL_IMAGES]
    of_arm, of_seed = [statistics.fmean(row) for row in x], [statistics.fmean(column) for column in zip(*x)]
    mean = statistics.fmean(of_arm)
    squares = sum((x[a][s] - of_arm[a] - of_seed[s] + mean) ** 2 for a in range(len(of_arm)) for s in range(len(of_seed)))
    return math.sqrt(2 * squares / ((len(of_seed) - 1) * (len(of_arm) - 1)))


def seeds_needed(spread: float, effect: float = PUBLISHED) -> int:
    """Return the seeds that find an FID lower by `effect` in four of five experiments, at the two-sided 5 % level.

        the smallest n >= ((t(0.975, n - 1) + t(0.8, n - 1)) spread / log(1 - effect))^2

    Args:
        spread: Standard deviation of a paired difference of log FID.
    """
    def enough(n: int) -> bool:
        return n >= ((t_quantile((1 + LEVEL) / 2, n - 1) + t_quantile(POWER, n - 1)) * spread / math.log1p(-effect)) ** 2

    high = 2
    while not enough(high):
        high *= 2
    return bisect_left(range(high), True, lo=2, key=enough)


def verdict(estimates: Sequence[Estimate]) -> str:
    """Return the verdict that all estimates share; `undecided` where they differ."""
    found = {estimate.verdict for estimate in estimates}
    return found.pop() if len(found) == 1 else UNDECIDED


def t_quantile(p: float, df: int) -> float:
    """Return the value that Student's t with `df` degrees of freedom stays below with probability `p`, 0.5 < p < 1."""
    low, high = 0.0, 1.0
    while within(high, df) < 2 * p - 1:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, df) < 2 * p - 1 else (low, middle)
    return high


def within(t: float, df: int) -> float:
    """Return the probability that Student's t with `df` degrees of freedom lies between -t and t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(df))
    odd, square = df % 2, math.cos(theta) ** 2
    term = total = (math.cos(theta) if odd else 1.0) if df > 1 else 0.0
    for k in range(2 + odd, df - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return (theta + math.sin(theta) * total) * 2 / math.pi if odd else math.sin(theta) * total
