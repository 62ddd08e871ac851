"""Likelihood ratios by hand, and shadows that find what was learned by heart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from fedsec.audit import lira as shadows
from fedsec.audit.lira import lira
from fedsec.audit.subject import Examples, Subject
from fedsec.errors import UsageError


def test_every_image_is_in_half_of_the_shadows() -> None:
    seen = shadows._halves(8, 3000)
    assert (seen.sum(axis=0) == 4).all()
    # Which half is random: each shadow has about half of the images.
    assert (np.abs(seen.sum(axis=1) - 1500) < 6 * np.sqrt(3000) / 2).all()


def test_the_ratio_is_that_of_two_normal_densities() -> None:
    random = np.random.default_rng(1)
    seen = shadows._halves(400, 600)
    means = random.normal(size=600)
    scores = np.where(seen, means + 2.0, means) + random.normal(size=seen.shape)
    audited = means + random.permutation(np.linspace(0, 2, 600))
    expected = stats.norm.logpdf(audited, means + 2.0) - stats.norm.logpdf(audited, means)
    # As good on the whole as the shadows are: nothing is taken off. Estimated means are off by 0.07.
    assert expected.max() > 1.9
    # Who saw what is drawn anew in every run: ten deviations for one of 600, twice the usual for all.
    off = shadows._ratio(audited, scores, seen) - expected
    assert np.abs(off).max() < 1.3
    assert np.sqrt(np.mean(off**2)) < 0.3


def test_scores_are_logits_of_the_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "losses_of", lambda *_: -np.log(np.array([0.5, 0.9, 0.01])))
    found = shadows._scores(None, Examples(np.zeros(3), np.zeros(3)))
    assert found == pytest.approx(np.log(np.array([1.0, 9.0, 0.01 / 0.99])))
    monkeypatch.setattr(shadows, "losses_of", lambda *_: np.array([0.0, 1000.0]))
    assert np.isfinite(shadows._scores(None, Examples(np.zeros(2), np.zeros(2)))).all()


def test_what_was_learned_by_heart_is_found(subject: Subject) -> None:
    few = dataclasses.replace(
        subject, others=Examples(subject.others.images[:300], subject.others.labels[:300])
    )
    attack = lira(few, shadows=4, epochs=15)
    assert (attack.members, attack.others) == (150, 300)
    assert attack.area.low > 0.6


def test_images_that_were_in_no_training_are_not(subject: Subject) -> None:
    first, second = (
        Examples(subject.others.images[cut], subject.others.labels[cut])
        for cut in (slice(200), slice(200, 500))
    )
    attack = lira(dataclasses.replace(subject, hospitals=(first,), others=second), shadows=2, epochs=5)
    # Three standard deviations of an area of guesses.
    assert attack.area.value == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("count", [0, 3])
def test_shadows_come_in_pairs(subject: Subject, count: int) -> None:
    with pytest.raises(UsageError, match="even number"):
        lira(subject, shadows=count)
