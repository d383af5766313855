"""The chi-square test of sampled frequencies, with a stated power."""

import numpy as np
import scipy.stats


def p_value(counts, law, against=None):
    """Return the p-value of counts under a law, outcomes below 5 expected joined.

    Args:
        counts, law: of the outcomes, `[outcomes]`.
        against: another law, which the test must tell apart with a power of 0.999 at the level
            0.001, or it is no test.
    """
    total = counts.sum()
    rare = total * law < 5
    joined = lambda each: np.append(each[~rare], each[rare].sum() if rare.any() else [])
    observed, expected = joined(counts), joined(total * law)
    if against is not None:
        difference = joined(total * against) - expected
        noncentrality = np.sum(difference**2 / expected)
        limit = scipy.stats.chi2.isf(1e-3, len(expected) - 1)
        power = scipy.stats.ncx2.sf(limit, len(expected) - 1, noncentrality)
        assert power > 0.999, power
    return scipy.stats.chisquare(observed, expected).pvalue
