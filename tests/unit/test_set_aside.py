"""The summary of lines that were set aside, by reason."""

from workflows.corpus.set_aside import SetAside, kind_of, set_aside_text


def test_reasons_are_one_kind_whatever_they_quote_and_count() -> None:
    for one, other in (
        (
            "not JSON: Expecting value: line 1 column 3 (char 2)",
            "not JSON: Expecting value: line 2 column 14 (char 13)",
        ),
        ("message 0 has the unknown role 'robot'", 'message 12 has the unknown role "it\'s me"'),
        ("byte 0xe9 in position 5", "byte 0xff in position 1,005"),
    ):
        assert kind_of(one) == kind_of(other)
    assert kind_of("`content` is None") != kind_of("`role` is None")
    assert kind_of("the speaker's turn isn't there") == "the speaker's turn isn't there"


def test_groups_have_counts_and_the_first_line_of_the_first_file() -> None:
    groups = SetAside()
    for order, line in ((1, 2), (0, 7), (0, 5), (1, 1)):
        groups.add(f"unknown role 'r{line}'", order, f"file{order}", line)
    groups.add("not JSON", 0, "file0", 1)
    first, second = groups.groups()
    assert first.to_json() == {
        "reason": "unknown role '…'", "count": 4, "file": "file0", "line": 5, "example": "unknown role 'r5'",
    }  # fmt: skip
    assert second.count == 1
    assert set_aside_text([first, second], most=1).splitlines() == [
        "  4 x file0:5: unknown role 'r5'", "  1 more for 1 other reasons",
    ]  # fmt: skip


def test_many_kinds_of_reasons_are_counted_but_not_all_kept() -> None:
    groups = SetAside()
    for number in range(1000):
        groups.add("x" * (number + 1), 0, "file", number)
    found = groups.groups()
    assert len(found) == 201
    assert found[0].reason == "other reasons"
    assert sum(group.count for group in found) == 1000
