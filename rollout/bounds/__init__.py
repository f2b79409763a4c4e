"""E-values and confidence sequences: evidence that stays valid however often one looks at it.

An e-process E starts at 1 and, under its null hypothesis H0, is a nonnegative supermartingale: given the past, its next
value is at most its present one in expectation. Ville's inequality is then the promise of everything here:
P(E ever reaches 1/α) ≤ α under H0, over all looks together, whenever and however often one looks. With α = .05: of
100 rollouts in which H0 holds, at most 5 ever show E ≥ 20. All work is done on ln E.

All but F5 are one construction, ``Process``. An observation is of one of a few kinds; each of the bets multiplies
its capital by a factor that depends on the kind alone; E is the mean capital of the bets. So E needs the *counts* of
the kinds only: counts of several routers add up, and the order of observations does not matter. F5 needs sums.

Null hypotheses are about each observation given all that came before ("P(bad | past) ≤ limit"). Dependence that keeps
this true does no harm; bursts in which the limit is exceeded for a while are evidence against it.

| formula | what it decides | module |
|---|---|---|
| F1 | a rate against a limit; a quantile's interval | ``rates``, ``quantiles`` |
| F2, F3 | the mean of paired differences; a relative uplift | ``means`` |
| F4 | rates of split traffic | ``split`` |
| F5 | a mean, a correlation: asymptotic | ``asymptotic`` |
| F6 | quantiles of two versions | ``quantiles`` |
| F7, F8 | exceedances of two versions whose latencies come in bursts | ``bursts`` |
| F9 | stages and gates merged | ``merging`` |

Sources: Howard & Ramdas arXiv:1906.09712; Waudby-Smith & Ramdas arXiv:2010.09686; Waudby-Smith et al.
arXiv:2103.06476; Lindon & Malek arXiv:2011.03567; Lindon et al. arXiv:2205.14762; merging: arXiv:2409.19888. F3, F7,
F8 and the stage forms of F4 and F9 are derivations of this project, proved where they are defined.
"""

from rollout.bounds.asymptotic import (
    Correlation,
    asymptotic_interval,
    asymptotic_log_e,
    asymptotic_margin,
    correlation_sums,
    mixing_variance,
)
from rollout.bounds.bursts import block_counts, block_sign_above, block_sign_below, damped, design_effect, frozen_above
from rollout.bounds.means import mean_above, mean_interval, ratio_above, ratio_below, ratio_interval
from rollout.bounds.merging import confidence, log_merge, log_mix_stages
from rollout.bounds.process import LAMS, ODDS, FloatArray, Interval, Process
from rollout.bounds.quantiles import quantile_edges, quantile_ratio_above, quantile_ratio_interval
from rollout.bounds.rates import rate_above, rate_below, rate_interval, rate_lower, rate_upper
from rollout.bounds.split import split_above, split_below, split_interval

__all__ = [
    "LAMS",
    "ODDS",
    "Correlation",
    "FloatArray",
    "Interval",
    "Process",
    "asymptotic_interval",
    "asymptotic_log_e",
    "asymptotic_margin",
    "block_counts",
    "block_sign_above",
    "block_sign_below",
    "confidence",
    "correlation_sums",
    "damped",
    "design_effect",
    "frozen_above",
    "log_merge",
    "log_mix_stages",
    "mean_above",
    "mean_interval",
    "mixing_variance",
    "quantile_edges",
    "quantile_ratio_above",
    "quantile_ratio_interval",
    "rate_above",
    "rate_below",
    "rate_interval",
    "rate_lower",
    "rate_upper",
    "ratio_above",
    "ratio_below",
    "ratio_interval",
    "split_above",
    "split_below",
    "split_interval",
]
