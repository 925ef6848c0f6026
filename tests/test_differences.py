import pytest
from scipy.stats import ttest_rel

MEASURES = ("eval accuracy", "eval loss", "train accuracy", "train loss")


@pytest.fixture
def script(example):
    return example("differences")


def rows_of(**experiments):
    """Return rows in which each measure of an experiment has the same values."""
    return {name: {measure: {"each": each} for measure in MEASURES} for name, each in experiments.items()}


def test_difference_is_that_of_a_paired_t_test(script):
    # By hand: differences 1, 2, 3; mean 2, sd 1, t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom:
    # p = 0.0742, and the interval is 2 -+ 4.3027 / sqrt 3.
    found = script.paired(rows_of(a=[2, 4, 6], b=[1, 2, 3]), {"a - b": ("a", "b")})[0]
    assert (found.mean, found.of) == (2, 2)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)


def test_difference_is_scipys(script):
    a, b = [0.71, 0.72, 0.69, 0.74], [0.70, 0.73, 0.66, 0.70]
    found = script.paired(rows_of(a=a, b=b), {"a - b": ("a", "b")})[0]
    test = ttest_rel(a, b)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_every_measure_is_compared(script):
    family = script.paired(rows_of(a=[1, 2], b=[1, 1], c=[0, 2]), {"a - b": ("a", "b"), "c - b": ("c", "b")})
    assert [(d.name, d.measure) for d in family] == [(n, m) for n in ("a - b", "c - b") for m in MEASURES]


def test_published_run_is_compared_with_one_more_of_ours(script):
    # Ours 1, 2, 3: mean 2, sd 1. One more lies within 4.3027 * sqrt(1 + 1 / 3) of the mean: 4.9683.
    rows = {"a": {"eval loss": {"each": [1, 2, 3]}}}
    (found,) = script.beside(rows, {"a": {"eval loss": 0.5}})
    assert found.mean == 1.5
    assert (found.low, found.high) == pytest.approx((1.5 - 4.9683, 1.5 + 4.9683), abs=1e-4)
    (at_the_end,) = script.beside(rows, {"a": {"eval loss": 2 - 4.9683}})
    assert at_the_end.p == pytest.approx(0.05, abs=1e-4)


def test_same_difference_in_each_run_is_certain(script):
    same, shifted = script.paired(
        rows_of(a=[1.0, 2.0], b=[0.5, 1.5]), {"a - a": ("a", "a"), "a - b": ("a", "b")}
    )[::4]
    assert (same.p, same.low, same.high) == (1, 0, 0)
    assert (shifted.p, shifted.low, shifted.high) == (0, 0.5, 0.5)


def test_single_run_is_compared_with_the_first_of_several(script):
    rows = rows_of(a=[2.0, 4.0], b=[1.0])
    found = script.paired(rows, {"a - b": ("a", "b"), "b - a": ("b", "a")})[::4]
    assert [(d.each, d.of) for d in found] == [((1.0,), 1.0), ((-1.0,), 2.0)]


def test_missing_run_is_refused(script):
    with pytest.raises(ValueError, match="a - b: a has 3 runs and b 2: expected pairs"):
        script.paired(rows_of(a=[1.0, 2.0, 3.0], b=[1.0, 2.0]), {"a - b": ("a", "b")})


def test_single_run_has_no_interval_and_no_p(script):
    (found, *_) = script.paired(rows_of(a=[2.0], b=[1.0]), {"a - b": ("a", "b")})
    assert (found.low, found.p, found.corrected, found.holds) == (None, None, None, False)
    assert found.cell == "+1.0000"


def family_of(script, *ps, each=(0.01, 0.03)):
    return script.corrected(
        [script.Difference("a - b", str(i), each, 1.0, 0, 1, p) for i, p in enumerate(ps)]
    )


def test_correction_is_holms(script):
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1, and none below the one before.
    family = family_of(script, 0.03, 0.01, 0.04, 0.02)
    assert [d.corrected for d in family] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert [d.holds for d in family] == [False, True, False, False]
    assert family_of(script, 0.6, 0.7)[0].corrected == 1


def test_tests_that_could_not_be_made_do_not_count(script):
    assert family_of(script, 0.03, None)[0].corrected == 0.03


def test_what_holds_is_bold_with_interval_and_p(script):
    holds, does_not = family_of(script, 0.0004, 0.4)
    assert holds.cell == "**+0.0200 (+0.0000 to +1.0000), p = 0.0004**"
    assert does_not.cell == "+0.0200 (+0.0000 to +1.0000), p = 0.40"
    assert script.p_text(0.00001) == "p < 0.0001"
    assert (script.p_text(0.0498), script.p_text(0.0502)) == ("p = 0.0498", "p = 0.0502")


def test_claim_says_size_sign_seeds_and_corrected_p(script):
    (found,) = family_of(script, 0.01, each=(-0.03, 0.01, -0.04))
    assert (
        found.claim
        == "a - b: 0 -0.0200 (-2.0 %), of this sign in 2 of 3 seeds; p = 0.01 after the correction"
    )


def test_claims_of_a_page_are_those_that_hold(script):
    family = family_of(script, 0.001, 0.5)
    page = f"text\n{script.told(family)}\nmore\n"
    assert script.wrong_claims(page, [family]) == []
    (omitted,) = script.wrong_claims("text", [family])
    assert omitted.startswith("omitted: a - b: 0 +0.0200")
    (false,) = script.wrong_claims(page, [family_of(script, 0.6, 0.5)])
    assert false.startswith("does not hold: a - b: 0 +0.0200")


def test_where_nothing_holds_it_is_said(script):
    assert script.told(family_of(script, 0.6, 0.5)) == (
        "None of the 2 tested differences holds after Holm's correction."
    )


def test_table_has_a_row_for_each_comparison_and_a_column_for_each_measure(script):
    family = script.paired(rows_of(a=[1.0], b=[0.5], c=[2.0]), {"a - b": ("a", "b"), "c - b": ("c", "b")})
    head, line, first, second = script.table(family, "what").splitlines()
    assert head == "| what | eval accuracy | eval loss | train accuracy | train loss |"
    assert line == "|---|---|---|---|---|"
    assert first == "| a - b | +0.5000 | +0.5000 | +0.5000 | +0.5000 |"
    assert second.startswith("| c - b | +1.5000 |")
