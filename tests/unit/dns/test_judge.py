from __future__ import annotations

from tests.unit.dns.queries import Judge
from wgvsock.dns.judge import NameJudge


def test_the_double_of_the_tests_satisfies_it() -> None:
    judge: NameJudge = Judge("a.test")  # which mypy looks at
    assert judge.allows("a.test")
    assert not judge.allows("b.test")
