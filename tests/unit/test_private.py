"""Private details: each kind where it is, nothing where something only looks like it, and placeholders."""

import itertools
import json
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.errors import RayconteurError
from models.text.private import KINDS, PatternTooSlow, PrivateDetails, Replacements

ROOT = Path(__file__).parents[2]
FINDER = PrivateDetails()


def found(text: str, finder: PrivateDetails = FINDER) -> list[tuple[str, str]]:
    return [(each.kind, text[each.start : each.end]) for each in finder.find(text)]


@pytest.mark.parametrize(
    ("kind", "detail", "text"),
    [
        ("email", "ann.lee+x@mail.example.co.uk", "Write to ann.lee+x@mail.example.co.uk, please."),
        ("email", "zhang@example.cn", "我的邮箱是zhang@example.cn，谢谢"),
        ("email", "a@example.com", "'a@example.com'"),
        ("phone", "+1 415-555-0132", "call +1 415-555-0132 now"),
        ("phone", "(415) 555-0132 ext. 12", "It is (415) 555-0132 ext. 12."),
        ("phone", "4155550132", "my phone is 4155550132"),
        ("phone", "030 23125012", "Sie erreichen mich unter 030 23125012."),
        ("phone", "13812345678", "我的手机号是13812345678"),
        ("phone", "06 12 34 56 78", "Mon numéro : 06 12 34 56 78."),
        ("iban", "DE89 3704 0044 0532 0130 00", "An DE89 3704 0044 0532 0130 00 BIC COBADEFF"),
        ("iban", "GB29NWBK60161331926819", "GB29NWBK60161331926819"),
        ("card", "4111 1111 1111 1111", "card 4111 1111 1111 1111, exp 12/26"),
        ("card", "378282246310005", "378282246310005"),
        ("ip", "203.0.113.7", "http://203.0.113.7:8080/"),
        ("ip", "2001:db8::1", "[2001:db8::1]:80"),
        ("person", "Anna Schmidt", "Mein Name ist Anna Schmidt, guten Tag."),
        ("person", "van der Berg", "Dear Mr van der Berg, thank you."),
        ("person", "Emily Carter", "See you.\n\nBest regards,\nEmily Carter"),
        ("person", "anna", "my name is anna, and you?"),
        ("person", "张伟", "我叫张伟，你呢？"),
        ("person", "王", "请问王女士在家吗"),
        ("person", "Jane Doe", "Name: Jane Doe"),
    ],
)
def test_a_detail_is_found_where_it_is(kind: str, detail: str, text: str) -> None:
    assert found(text) == [(kind, detail)]


@pytest.mark.parametrize(
    "text",
    [
        "Your order number is 4155550132.",
        "Order 4111111111111111",
        "Card 4111 1111 1111 1112",
        "DE88 3704 0044 0532 0130 00",
        "on 2024-01-15 14:30:00, from 09:00-17:30",
        "01.02.2024 - 03.02.2024",
        "$1,234,567.89 or 1 234 567 890 EUR",
        "3.1415926535897932",
        "Python 3.11.4, version 2.0.1.15, firmware 10.0.0.1, v1.2.3.4",
        "127.0.0.1, 0.0.0.0, 255.255.255.0, 256.1.2.3",
        "std::vector<int> a::b ::1 00:1A:2B:3C:4D:5E",
        "ISBN 978-3-16-148410-0, 0-306-40615-2",
        "ZIP 94105-1234, SSN 078-05-1120",
        "user@localhost pkg@1.2.3 logo@2x.png git@github.com:org/repo.git",
        "https://user:secret@host.example.com/path",
        "0.025446 0.541412 0.043487 0.703382",
        "number 79927398713",
        "Best,\nOnline Store",
        "any significance? numbers: 4 8 15 16 23 42",
        "5 650 000 - 5 000 000 = 650 000 cars, (50000 - 1000)",
        "Dear Sir or Madam, this is Amazing! I'm German.",
        "my name is not important",
        "Miss Universe drinks Dr. Pepper at 109 Plaza Dr. Gateway",
        "我是学生，对于老师来说很难",
        "Thanks,\nThe Support Team",
    ],
)
def test_what_only_looks_like_a_detail_is_left(text: str) -> None:
    assert found(text) == []


def test_the_message_before_says_what_a_bare_number_is() -> None:
    assert FINDER.find("sure, 4155550132", before="What's your phone number?")
    assert not FINDER.find("sure, 4155550132", before="What's your order number?")
    assert not FINDER.find("sure, 4155550132")
    # What has a phone's form is one, whatever was asked before.
    assert FINDER.find("415-555-0132", before="What's your order number?")


def test_details_are_in_order_and_the_longest_wins() -> None:
    finder = PrivateDetails({"contact": r"contact:\S+"})
    text = "contact:ann@example.org or +1 415-555-0132 or bob@example.org"
    assert [kind for kind, _ in found(text, finder)] == ["contact", "phone", "email"]


def test_only_the_kinds_and_regions_asked_for() -> None:
    text = "ann@example.org, +1 415-555-0132, call 415-555-0132"
    assert [kind for kind, _ in found(text, PrivateDetails(kinds=("email",)))] == ["email"]
    assert [each for _, each in found(text, PrivateDetails(kinds=("phone",), regions=("DE",)))] == ["+1 415-555-0132"]


def test_spellings_of_one_value_have_one_placeholder() -> None:
    replacements = Replacements()
    texts = [
        "Mail Ann@Example.org or ann@example.org or bob@example.org",
        "+1 415-555-0132, (415) 555-0132; not 415-555-0133",
        "DE89 3704 0044 0532 0130 00 = de89370400440532013000",
        "again ann@example.org",
    ]
    assert [replacements.apply(text, FINDER.find(text)) for text in texts] == [
        "Mail [EMAIL_1] or [EMAIL_1] or [EMAIL_2]",
        "[PHONE_1], [PHONE_1]; not [PHONE_2]",
        "[IBAN_1] = [IBAN_1]",
        "again [EMAIL_1]",
    ]
    assert Replacements().apply("bob@example.org", FINDER.find("bob@example.org")) == "[EMAIL_1]"


def test_a_person_is_the_same_in_the_whole_conversation() -> None:
    texts = [
        "My name is Will Turner.",
        "Hello Will, will you come? Will you call Elizabeth?",
        "Mr. Turner will. Her name is Elizabeth Swann.",
    ]
    replacements = Replacements()
    lists = FINDER.find_in_conversation(texts)
    assert [replacements.apply(text, details) for text, details in zip(texts, lists, strict=True)] == [
        "My name is [PERSON_1].",
        "Hello [PERSON_1], will you come? Will you call [PERSON_2]?",
        "Mr. [PERSON_1] will. Her name is [PERSON_2].",
    ]


def test_a_pattern_of_the_user() -> None:
    finder = PrivateDetails({"ticket": r"TCK-\d{6}"})
    text = "TCK-004711, tck-1"
    assert found(text, finder) == [("ticket", "TCK-004711")]
    assert Replacements().apply(text, finder.find(text)) == "[TICKET_1], tck-1"


@pytest.mark.parametrize(
    ("name", "pattern", "words"),
    [
        ("ticket", "TCK-(", ["no regular expression", "missing )", "position 5"]),
        ("ticket", r"\d*", ["matches the empty string", "+ in place of *"]),
        ("ticket", r"\b", ["matches the empty string"]),
        ("email", "x", ["none of email"]),
        ("My Ticket", "x", ["small letters"]),
    ],
)
def test_a_bad_pattern_names_its_field(name: str, pattern: str, words: list[str]) -> None:
    with pytest.raises(RayconteurError) as error:
        PrivateDetails({name: pattern})
    assert str(error.value).startswith(f"data.private.patterns.{name}: ")
    assert all(word in str(error.value) for word in words)


def test_an_unknown_kind_or_region_is_refused() -> None:
    with pytest.raises(RayconteurError, match=r"data\.private\.kinds: 'emial' is unknown; did you mean 'email'"):
        PrivateDetails(kinds=("emial",))
    with pytest.raises(RayconteurError, match=r"data\.private\.regions: 'UK' is unknown"):
        PrivateDetails(regions=("UK",))


def test_a_pattern_that_takes_exponential_time_is_stopped() -> None:
    finder = PrivateDetails({"slow": "(a|aa)+$"}, pattern_seconds=0.2)
    begin = time.process_time()
    with pytest.raises(PatternTooSlow, match=r"data\.private\.patterns\.slow.*more than 0\.2 s.*60 characters"):
        finder.find("a" * 59 + "!")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "text",
    ["1", "1 ", "12345678901 ", "a.", "(", "A", "::", "Hi Bob, ", "call 415-555-0132, ", "a@", "Best regards,\n"],
)
def test_time_grows_with_the_text_and_no_faster(text: str) -> None:
    seconds = []
    for size in (10_000, 80_000):
        begin = time.process_time()
        FINDER.find(text * (size // len(text)))
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 0.1 + 20 * seconds[0]


def test_any_characters_give_details_in_order() -> None:
    draw = random.Random(0)
    characters = "0123456789" * 3 + "+-. ()/,:@aAzZxe'\n中王$€#"
    for _ in range(3000):
        text = "".join(draw.choices(characters, k=draw.randrange(1, 60)))
        details = FINDER.find(text, before="your phone?")
        assert all(one.end <= other.start for one, other in itertools.pairwise(details)), text
        assert all(text[each.start : each.end].strip() for each in details), text


def test_a_finder_travels_to_another_process() -> None:
    finder = pickle.loads(pickle.dumps(PrivateDetails({"ticket": r"TCK-\d{6}"}, regions=("DE",))))
    assert found("TCK-004711, call 030 23125012", finder) == [("ticket", "TCK-004711"), ("phone", "030 23125012")]


def test_the_lines_of_the_benchmark() -> None:
    """Its figures do not get worse."""
    command = [sys.executable, "benchmarks/private_details.py"]
    output = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    result = json.loads(output.stdout.splitlines()[-1])
    assert result["lines"] >= 500
    for kind in KINDS:
        measured = result["kinds"][kind]
        assert measured["precision"] >= (0.93 if kind == "person" else 0.97), kind
        assert measured["recall"] >= (0.87 if kind in ("person", "email") else 0.97), kind
